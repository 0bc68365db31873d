//! Commit and confirm: a change is carried out, proven or confirmed, or else undone.
//!
//! ```text
//!   read, plan -> ask the control path -> journal on disk -> carry out -> ask again -+-> proven: journal gone
//!                                                                 ^   |             +-> confirmed: the same
//!                                                                 '---' twice a     '-> deadline: undo, held
//!                                                                       second
//! ```
//!
//! An operation that fails ends the change at once: what came before it is undone, what comes after is not tried,
//! and the answer tells all three. Undoing is wishing for the network of the journal, by the same difference, so
//! it needs no record of how far the change came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netboot::host::{self, HostSpec, Judgement, LinkPolicy, Operation};

use crate::controller::now;
use crate::host::journal::{Entry, Page, fingerprint};
use crate::host::keeper::{Keeping, Stance};
use crate::host::path::Path;
use crate::host::refusal::Refusal;
use crate::host::words::{Applied, Done, Last, Obstructed, Outcome, Step, Wish};

/// Between two looks at the control path.
const LOOK: Duration = Duration::from_millis(500);
/// How often undoing begins anew when the kernel refuses a part of it, or others interfere.
const UNDO_TRIES: usize = 3;
/// After a change that nobody asked for by hand failed for the first time.
const AGAIN: Duration = Duration::from_secs(10);
/// The same after many failures.
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// A change that is carried out and not yet kept.
pub(crate) struct Pending {
    entry: Entry,
    path: Path,
    /// Only a person keeps it.
    ask: bool,
    deadline: Instant,
    next: Instant,
}

impl Pending {
    /// When something is to be done about it.
    pub(crate) fn wake(&self) -> Instant {
        if self.ask {
            self.deadline
        } else {
            self.next.min(self.deadline)
        }
    }
}

/// A network that is left as it is.
pub(crate) struct Held {
    /// Why.
    pub(crate) why: String,
    /// When it is tried again without being told.
    pub(crate) again: Option<Instant>,
}

impl Keeping {
    /// Carries out what `spec` wants. It is the site in force from here on, whatever becomes of it.
    pub(crate) async fn apply(
        &mut self,
        spec: Arc<HostSpec>,
        wish: &Wish,
        by: &str,
    ) -> Result<Applied, Refusal> {
        self.must_not_wait()?;
        if spec.policy == LinkPolicy::Unmanaged {
            return Err(Refusal::Unmanaged);
        }
        self.spec = spec;
        let present = self.kernel.read().await?;
        let target = host::target(&self.spec, &present);
        self.obstacles.clone_from(&target.obstacles);
        let obstacles: Vec<Obstructed> = target.obstacles.iter().map(Obstructed::from).collect();
        if target.is_refused() {
            return Err(Refusal::Obstructed(obstacles));
        }
        let operations = host::diff(&present, &target.state);
        if operations.is_empty() {
            self.forget().await;
            (self.stance, self.failures) = (Stance::Keeping, 0);
            return Ok(Applied {
                outcome: Outcome::Nothing,
                sentence: "nothing to do: the host's network is as the site wants it".to_owned(),
                steps: Vec::new(),
                undone: Vec::new(),
                obstacles,
                deadline: None,
            });
        }
        let seconds = wish.within.unwrap_or(self.spec.confirm_seconds);
        let path = Path::record(&present, &target.state, wish.session.as_deref()).await;
        let entry = Entry {
            at: now(),
            wanted: fingerprint(&self.spec),
            why: by.to_owned(),
            before: present,
            operations,
        };
        self.journal.write(Page::Pending(entry.clone())).await?;
        let applied = self.change(entry, path, seconds, wish.ask).await;
        Ok(Applied {
            obstacles,
            ..applied
        })
    }

    /// The part that the journal guards.
    async fn change(&mut self, entry: Entry, mut path: Path, seconds: u32, ask: bool) -> Applied {
        let steps = self.carry_out(&entry.operations).await;
        let failed = steps.iter().find(|step| step.result == Done::Failed);
        let count = counted(steps.len());
        self.note("apply", None, format!("{count} by {}", entry.why));
        if let Some(failed) = failed {
            let undone = self.give_up(entry, failed.clone()).await;
            return self.applied(Outcome::Failed, steps, undone);
        }
        path.changed().await;
        let deadline = Duration::from_secs(u64::from(seconds));
        let pending = Pending {
            entry,
            path,
            ask,
            deadline: Instant::now() + deadline,
            next: Instant::now(),
        };
        self.decide(Outcome::Waiting, "a proof".to_owned());
        if let Some(last) = &mut self.last {
            last.deadline = Some(now().plus_seconds(u64::from(seconds)));
        }
        self.stance = Stance::Pending(Box::new(pending));
        self.judge().await;
        let outcome = self
            .last
            .as_ref()
            .map_or(Outcome::Waiting, |last| last.outcome);
        self.applied(outcome, steps, Vec::new())
    }

    /// Undoes a change of which one operation failed. It cost nobody anything, so it may be tried again: by the next
    /// start, and sooner where no person will look at the report.
    async fn give_up(&mut self, entry: Entry, failed: Step) -> Vec<Step> {
        let by_itself = entry.is_by_itself();
        let undone = self.undo(entry, failed.cause.unwrap_or_default()).await;
        if !whole(&undone) {
            return undone;
        }
        self.forget().await;
        if let Stance::Held(held) = &mut self.stance {
            if let Some(remedy) = failed.remedy {
                held.why += &format!("; try: {remedy}");
            }
            if by_itself {
                let pause = AGAIN
                    .saturating_mul(1 << self.failures.min(8))
                    .min(AGAIN_MAX);
                self.failures += 1;
                held.again = Some(Instant::now() + pause);
            }
        }
        undone
    }

    fn applied(&self, outcome: Outcome, steps: Vec<Step>, undone: Vec<Step>) -> Applied {
        Applied {
            outcome,
            sentence: self.last.as_ref().map_or(String::new(), Last::sentence),
            steps,
            undone,
            obstacles: Vec::new(),
            deadline: self.last.as_ref().and_then(|last| last.deadline),
        }
    }

    /// One after the other, up to the first that fails.
    async fn carry_out(&self, operations: &[Operation]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut broken = false;
        for operation in operations {
            let step = if broken {
                Step::new(operation, Done::Left)
            } else {
                self.step(operation).await
            };
            broken |= step.result == Done::Failed;
            steps.push(step);
        }
        steps
    }

    async fn step(&self, operation: &Operation) -> Step {
        match self.kernel.carry_out(operation).await {
            Ok(()) => {
                tracing::info!("changed the host's network: {operation}");
                self.note("change", operation.link(), operation.to_string());
                Step::new(operation, Done::Done)
            }
            Err(failed) => {
                tracing::error!("changing the host's network: {operation}: {failed}");
                Step {
                    cause: Some(failed.to_string()),
                    remedy: Some(failed.remedy),
                    ..Step::new(operation, Done::Failed)
                }
            }
        }
    }

    /// Asks the control path whether it lives, and keeps or undoes by its answer.
    pub(crate) async fn judge(&mut self) {
        let Stance::Pending(pending) = &mut self.stance else {
            return;
        };
        let late = Instant::now() >= pending.deadline;
        let judgement = pending.path.judge(&self.kernel, pending.ask, late).await;
        pending.next = Instant::now() + LOOK;
        match judgement {
            Judgement::Keep(why) => {
                self.keep(why).await;
            }
            Judgement::RollBack(why) => {
                let entry = pending.entry.clone();
                self.undo(entry, why).await;
            }
            Judgement::Wait(what) => {
                if let Some(last) = &mut self.last {
                    last.why = what;
                }
            }
        }
    }

    /// A person says that it is good.
    pub(crate) async fn confirm(&mut self, by: &str) -> Result<Last, Refusal> {
        if let Stance::Pending(_) = &self.stance {
            return Ok(self.keep(format!("confirmed by {by}")).await);
        }
        let last = self.last.as_ref();
        let last = last.map_or("there was none since the start".to_owned(), |last| {
            format!("the last one was {}", last.sentence())
        });
        Err(Refusal::NothingWaits(last))
    }

    async fn keep(&mut self, why: String) -> Last {
        tracing::info!("the change of the host's network is kept: {why}");
        self.note("keep", None, why.clone());
        (self.stance, self.failures) = (Stance::Keeping, 0);
        self.forget().await;
        self.decide(Outcome::Kept, why)
    }

    /// Goes back to what was before a change, and stays there.
    pub(crate) async fn undo(&mut self, entry: Entry, why: String) -> Vec<Step> {
        tracing::error!("the change of the host's network is undone: {why}");
        let undone = self.roll_back(&entry).await;
        self.note("roll-back", None, why.clone());
        self.decide(Outcome::RolledBack, why.clone());
        let mut held = Held { why, again: None };
        if whole(&undone) {
            let page = Page::Held(Entry {
                at: now(),
                why: held.why.clone(),
                // Whoever goes back to it later goes back to what was ours, and to nothing else.
                operations: Vec::new(),
                ..entry
            });
            if let Err(error) = self.journal.write(page).await {
                // The next start finds the change pending, has nothing to undo, and holds.
                tracing::error!(%error, "that the change was undone is not on disk");
            }
        } else {
            // The journal goes on saying that it is pending, so the next start tries again.
            let stays = undone.iter().filter(|step| step.result == Done::Failed);
            let stays: Vec<&str> = stays.map(|step| step.what.as_str()).collect();
            held.why += &format!(
                "; this could not be undone, restart the service to try again: {}",
                stays.join(", ")
            );
        }
        self.stance = Stance::Held(held);
        undone
    }

    /// Wishes for the network as it was, until it is so. What fails does not keep the rest from being done.
    pub(crate) async fn roll_back(&self, entry: &Entry) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..UNDO_TRIES {
            let present = match self.kernel.read().await {
                Ok(present) => present,
                Err(failed) => {
                    tracing::error!("reading what is to be undone: {failed}");
                    steps.push(Step::unread(failed));
                    continue;
                }
            };
            steps.retain(|step| step.result == Done::Done);
            let operations = host::restore(&entry.before, &entry.operations, &present);
            if operations.is_empty() {
                break;
            }
            for operation in &operations {
                steps.push(self.step(operation).await);
            }
        }
        steps
    }

    /// Nothing is pending and nothing held.
    pub(crate) async fn forget(&self) {
        if let Err(error) = self.journal.clear().await {
            tracing::error!(%error, "a restart would undo what was kept");
        }
    }

    fn decide(&mut self, outcome: Outcome, why: String) -> Last {
        let last = Last {
            at: now(),
            outcome,
            why,
            deadline: None,
        };
        self.last = Some(last.clone());
        last
    }

    pub(crate) fn must_not_wait(&self) -> Result<(), Refusal> {
        match (&self.stance, &self.last) {
            (Stance::Pending(pending), last) => Err(Refusal::Waits {
                by: pending.entry.why.clone(),
                until: last
                    .as_ref()
                    .and_then(|last| last.deadline)
                    .unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }
}

/// Whether everything was done.
pub(crate) fn whole(steps: &[Step]) -> bool {
    steps.iter().all(|step| step.result == Done::Done)
}

fn counted(changes: usize) -> String {
    match changes {
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}
