//! The keeper: the one task that changes the host's network, and keeps what it made.
//!
//! ```text
//!   start, reload, `host apply` --> apply --proven, confirmed--> keeping --something of ours is gone--> repair
//!                                     '----neither in time-----> held, as it was before
//! ```
//!
//! Every change of the site's wishes goes by the journal and must be proven (`apply.rs`): that includes links
//! whose parent comes late. A repair only brings back what was proven before, and needs neither.
//!
//! What is held is left alone until the site wants something else, or a person applies it again: a change that
//! cost the control path must not come back with the next restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netboot::attempt::Fact;
use netboot::host::{self, HostSpec, HostState, LinkPolicy, Obstacle, Operation};
use netboot::net::LinkName;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::host::Changes;
use crate::host::apply::{Held, Pending, whole};
use crate::host::fights::{Fights, Turn};
use crate::host::journal::{ARRIVAL, Entry, Journal, Page, START, fingerprint};
use crate::host::kernel::{Failed, Kernel};
use crate::host::refusal::Refusal;
use crate::host::rivals::{Rival, rivals};
use crate::host::words::{Applied, HostReport, Last, Plan, Wish};
use crate::ledger::Ledger;

/// Commands that may wait; administrators are few.
const QUEUE_MAX: usize = 16;
/// After a repair that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks, whatever happens.
const LOOK_MIN: Duration = Duration::from_millis(100);

/// Where wishes for the host are brought. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper(mpsc::Sender<Command>);

enum Command {
    Plan(Arc<HostSpec>, oneshot::Sender<Result<Plan, Refusal>>),
    Apply(
        Arc<HostSpec>,
        Wish,
        String,
        oneshot::Sender<Result<Applied, Refusal>>,
    ),
    Follow(
        Arc<HostSpec>,
        String,
        oneshot::Sender<Result<String, Refusal>>,
    ),
    Confirm(String, oneshot::Sender<Result<Last, Refusal>>),
    Free(oneshot::Sender<Result<(), Refusal>>),
    Report(oneshot::Sender<Result<HostReport, Refusal>>),
}

impl Keeper {
    /// Undoes what a daemon that died left unproven, then makes what `spec` wants, as far as it can be made. The
    /// second value is the task that keeps it.
    ///
    /// # Errors
    /// The kernel can't be asked for the host's network at all.
    pub async fn start(
        journal: Journal,
        ledger: Ledger,
        health: Health,
        spec: Arc<HostSpec>,
    ) -> Result<(Self, Keeping), Failed> {
        let kernel = Kernel::open().await?;
        let (commands, inbox) = mpsc::channel(QUEUE_MAX);
        let mut keeping = Keeping {
            changes: kernel.changes(),
            kernel,
            journal,
            ledger,
            health,
            spec,
            stance: Stance::Keeping,
            last: None,
            obstacles: Vec::new(),
            differs: 0,
            failures: 0,
            missed: false,
            fights: Fights::default(),
            trouble: None,
            inbox,
        };
        keeping.begin().await;
        Ok((Self(commands), keeping))
    }

    /// What an apply of `spec` would do now.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn plan(&self, spec: Arc<HostSpec>) -> Result<Plan, Refusal> {
        self.ask(|answer| Command::Plan(spec, answer)).await
    }

    /// Carries out what `spec` wants, and makes it the site that is kept.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn apply(
        &self,
        spec: Arc<HostSpec>,
        wish: Wish,
        by: &str,
    ) -> Result<Applied, Refusal> {
        let by = by.to_owned();
        self.ask(|answer| Command::Apply(spec, wish, by, answer))
            .await
    }

    /// Whether a change could be begun.
    ///
    /// # Errors
    /// [`Refusal::Waits`] while one is not kept yet.
    pub async fn must_be_free(&self) -> Result<(), Refusal> {
        self.ask(Command::Free).await
    }

    /// Whether an apply of `spec` would begin at all.
    ///
    /// # Errors
    /// [`Refusal::Unmanaged`], [`Refusal::Obstructed`]
    pub async fn may_apply(&self, spec: Arc<HostSpec>) -> Result<(), Refusal> {
        if spec.policy == LinkPolicy::Unmanaged {
            return Err(Refusal::Unmanaged);
        }
        let plan = self.plan(spec).await?;
        if plan.refused().next().is_some() {
            return Err(Refusal::Obstructed(plan.obstacles));
        }
        Ok(())
    }

    /// A new site is in force: its links are made, or looked at where others make them. What became of it, in words.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn follow(&self, spec: Arc<HostSpec>, by: &str) -> Result<String, Refusal> {
        let by = by.to_owned();
        self.ask(|answer| Command::Follow(spec, by, answer)).await
    }

    /// A person says that the change that waits is good.
    ///
    /// # Errors
    /// [`Refusal::NothingWaits`]
    pub async fn confirm(&self, by: &str) -> Result<Last, Refusal> {
        let by = by.to_owned();
        self.ask(|answer| Command::Confirm(by, answer)).await
    }

    /// How the host's network stands.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn report(&self) -> Result<HostReport, Refusal> {
        self.ask(Command::Report).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<T, Refusal> {
        let (answer, wait) = oneshot::channel();
        self.0
            .send(command(answer))
            .await
            .map_err(|_| Refusal::Stopping)?;
        wait.await.map_err(|_| Refusal::Stopping)?
    }
}

/// The task.
pub struct Keeping {
    pub(crate) kernel: Kernel,
    changes: Changes,
    pub(crate) journal: Journal,
    ledger: Ledger,
    health: Health,
    /// What the site in force wants.
    pub(crate) spec: Arc<HostSpec>,
    pub(crate) stance: Stance,
    /// How the last apply stands.
    pub(crate) last: Option<Last>,
    /// What kept parts of the site from being made when it was last looked at.
    pub(crate) obstacles: Vec<Obstacle>,
    /// Operations that would make it so, where others are to do that.
    pub(crate) differs: usize,
    /// Changes that failed since the last one that did not.
    pub(crate) failures: u32,
    /// Something changed while a change was not kept yet.
    missed: bool,
    fights: Fights,
    /// What repairs failed at, or who undoes them.
    pub(crate) trouble: Option<Trouble>,
    inbox: mpsc::Receiver<Command>,
}

/// What the task does about differences.
pub(crate) enum Stance {
    /// Repairs them.
    Keeping,
    /// Waits for a proof.
    Pending(Box<Pending>),
    /// Leaves them.
    Held(Held),
}

pub(crate) struct Trouble {
    pub(crate) what: String,
    /// When it is tried again.
    until: Instant,
}

impl Keeping {
    /// Keeps the host as the site wants it, until `stop`.
    ///
    /// # Errors
    /// Never; the shape is that of the daemon's tasks.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        loop {
            if self.missed && matches!(self.stance, Stance::Keeping) {
                self.missed = false;
                self.look().await;
            }
            self.tell();
            let wake = tokio::time::Instant::from_std(self.wake(Instant::now()));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return Ok(()),
                },
                () = self.changes.next() => self.look().await,
                () = tokio::time::sleep_until(wake) => match self.stance {
                    Stance::Pending(_) => self.judge().await,
                    Stance::Keeping => self.look().await,
                    Stance::Held(_) => self.try_again().await,
                },
            }
        }
    }

    /// When something is to be done without being told.
    fn wake(&self, now: Instant) -> Instant {
        /// No later than the kernel's word comes in any case.
        const LONG: Duration = Duration::from_secs(60);
        let next = match &self.stance {
            Stance::Pending(pending) => Some(pending.wake()),
            Stance::Keeping => {
                let trouble = self.trouble.as_ref().map(|trouble| trouble.until);
                [self.fights.next(now), trouble].into_iter().flatten().min()
            }
            Stance::Held(held) => held.again,
        };
        next.unwrap_or(now + LONG)
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may be gone; what was done stays done.
        match command {
            Command::Plan(spec, answer) => {
                let plan = self.kernel.read().await;
                let plan = plan.map(|present| Plan::of(&spec, &present));
                let _ = answer.send(plan.map_err(Refusal::from));
            }
            Command::Apply(spec, wish, by, answer) => {
                let applied = self.apply(spec, &wish, &by).await;
                let _ = answer.send(applied);
            }
            Command::Follow(spec, by, answer) => {
                let _ = answer.send(self.follow(spec, &by).await);
            }
            Command::Free(answer) => {
                let _ = answer.send(self.must_not_wait());
            }
            Command::Confirm(by, answer) => {
                let _ = answer.send(self.confirm(&by).await);
            }
            Command::Report(answer) => {
                let _ = answer.send(self.report().await);
            }
        }
    }

    /// The start: what the journal says comes first.
    async fn begin(&mut self) {
        match self.journal.read() {
            Ok(None) => {}
            Ok(Some(Page::Pending(entry))) => self.undo_of_the_dead(entry).await,
            Ok(Some(Page::Held(entry))) if entry.wanted == fingerprint(&self.spec) => {
                // After a reboot nothing of what was before is there.
                self.roll_back(&entry).await;
                self.hold(entry.why);
            }
            Ok(Some(Page::Held(_))) => self.forget().await,
            Err(error) => {
                tracing::error!(%error, "the host's network is left as it is");
                self.hold(format!("what it was before is not known: {error}"));
            }
        }
        if matches!(self.stance, Stance::Keeping) {
            self.make(START).await;
        }
        self.tell();
    }

    fn hold(&mut self, why: String) {
        self.stance = Stance::Held(Held { why, again: None });
    }

    /// What failed may have healed.
    async fn try_again(&mut self) {
        if let Stance::Held(held) = &mut self.stance
            && held
                .again
                .take()
                .is_some_and(|again| again <= Instant::now())
        {
            self.make(START).await;
        }
    }

    /// Makes what the site wants without being told. The rest of the daemon serves what there is.
    async fn make(&mut self, by: &str) {
        let spec = Arc::clone(&self.spec);
        if let Err(refusal) = self.follow(spec, by).await {
            tracing::error!("the host's network is left as it is: {refusal}");
        }
    }

    async fn follow(&mut self, spec: Arc<HostSpec>, by: &str) -> Result<String, Refusal> {
        if spec.policy == LinkPolicy::Managed {
            let applied = self.apply(spec, &Wish::default(), by).await?;
            return Ok(applied.sentence);
        }
        self.must_not_wait()?;
        self.forget().await;
        (self.spec, self.stance, self.missed) = (spec, Stance::Keeping, true);
        Ok("others make them; `reveille host status` compares".to_owned())
    }

    async fn undo_of_the_dead(&mut self, entry: Entry) {
        let by_itself = entry.is_by_itself();
        let same_site = entry.wanted == fingerprint(&self.spec);
        let why = format!(
            "the daemon ended before the change by {} was proven",
            entry.why
        );
        let undone = self.undo(entry, why).await;
        if whole(&undone) && (by_itself || !same_site) {
            // Nobody sits and waits for it, and a bastion without its links helps nobody: once more, and proven.
            self.forget().await;
            self.stance = Stance::Keeping;
        }
    }

    /// Looks whether something differs, and mends what may be mended.
    async fn look(&mut self) {
        self.missed |= matches!(self.stance, Stance::Pending(_));
        if !matches!(self.stance, Stance::Keeping) || self.spec.is_empty() {
            return;
        }
        match self.kernel.read().await {
            Ok(present) => self.mend(&present).await,
            Err(failed) => self.stumble(&failed),
        }
        if let Some(trouble) = &mut self.trouble {
            trouble.until = trouble.until.max(Instant::now() + LOOK_MIN);
        }
    }

    async fn mend(&mut self, present: &HostState) {
        let target = host::target(&self.spec, present);
        let operations = host::diff(present, &target.state);
        let unmanaged = self.spec.policy == LinkPolicy::Unmanaged;
        if unmanaged {
            self.differs = operations.len();
        }
        let settled = target.obstacles == self.obstacles;
        let refused = target.is_refused();
        self.obstacles = target.obstacles;
        if operations.is_empty() || unmanaged || refused {
            self.trouble = None;
        } else if settled {
            self.repair(&operations, present).await;
        } else {
            self.make(ARRIVAL).await;
        }
    }

    /// Brings back what was there before, in its order; what is fought over is left to the other side for a while.
    ///
    /// The first operation on a link speaks for all of them: what hangs on it was lost with it.
    async fn repair(&mut self, operations: &[Operation], present: &HostState) {
        let mut turns = BTreeMap::new();
        let (mut aside, mut left) = (Vec::new(), false);
        for operation in operations {
            let now = Instant::now();
            let mut ask = || self.fights.turn(&operation.to_string(), now);
            let turn = match operation.link() {
                Some(link) => *turns.entry(link).or_insert_with(ask),
                None => ask(),
            };
            match turn {
                Turn::Repair => {}
                Turn::Wait => {
                    left = true;
                    continue;
                }
                Turn::StepAside(until) => {
                    aside.push((operation, until));
                    continue;
                }
            }
            match self.kernel.carry_out(operation).await {
                Ok(()) => {
                    tracing::warn!("repaired the host's network: {operation}");
                    self.note("repair", operation.link(), operation.to_string());
                }
                // What comes after may rest on it.
                Err(failed) => return self.stumble(&failed),
            }
        }
        match aside.split_first() {
            Some(((operation, until), _)) => self.step_aside(operation, *until, present),
            None if left => {}
            None => self.trouble = None,
        }
    }

    fn step_aside(&mut self, operation: &Operation, until: Instant, present: &HostState) {
        let pause = until.saturating_duration_since(Instant::now());
        let mut what = format!(
            "something undoes this again and again, so it is left for {:.0} s: {operation}",
            pause.as_secs_f64()
        );
        for rival in rivals(
            Path::new("/"),
            &operation.link().into_iter().collect(),
            present,
        ) {
            let Rival {
                program, remedy, ..
            } = rival;
            what += &format!("; {program} configures that link too, try: {remedy}");
        }
        tracing::error!("{what}");
        self.note("step-aside", operation.link(), what.clone());
        self.trouble = Some(Trouble { what, until });
    }

    fn stumble(&mut self, failed: &Failed) {
        let what = format!("{failed}; try: {}", failed.remedy);
        if self.trouble.as_ref().is_none_or(|known| known.what != what) {
            tracing::error!("repairing the host's network: {what}");
        }
        let until = Instant::now() + AGAIN;
        self.trouble = Some(Trouble { what, until });
    }

    /// Says it in the ledger.
    pub(crate) fn note(&self, act: &'static str, link: Option<&LinkName>, detail: String) {
        let fact = Fact::Host {
            act: act.into(),
            link: link.cloned(),
            detail,
        };
        self.ledger.note(None, None, fact);
    }

    /// Says in the status how it stands.
    fn tell(&self) {
        let (well, sentence) = self.sentence();
        match (well, self.spec.is_empty()) {
            (true, true) => self.health.forget("host"),
            (true, false) => self.health.well("host", sentence),
            (false, _) => self.health.ill("host", sentence),
        }
    }
}
