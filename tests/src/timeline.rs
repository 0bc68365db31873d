//! What happened in a laboratory, in one list: every line of every process, stamped with the seconds since it was built.
//!
//! A test waits for a line to appear, never for time to pass. Every wait has a limit, and a wait that fails prints the
//! whole list, so that the story can be read without running it again.

use std::fmt::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Lines kept; a process that babbles loses its later lines, the wait on it then fails by its limit.
const LINES_MAX: usize = 200_000;
/// Lines shown of a story that failed.
const SHOWN_MAX: usize = 400;

/// Under this name the laboratory itself speaks: who started, who ended.
pub const LAB: &str = "lab";

#[derive(Clone, Debug)]
pub struct Line {
    pub at: Duration,
    pub who: String,
    /// Which life of `who` said it; 0 is the laboratory's own.
    pub life: usize,
    pub text: String,
}

#[derive(Default)]
struct Story {
    lines: Vec<Line>,
    lives: usize,
    ended: Vec<usize>,
}

/// A shared, growing list of lines; a clone is another handle on the same list.
#[derive(Clone)]
pub struct Timeline {
    start: Instant,
    shared: Arc<(Mutex<Story>, Condvar)>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            shared: Arc::default(),
        }
    }
}

impl Timeline {
    /// Seconds since the laboratory was built.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Something that the laboratory itself says.
    pub fn note(&self, text: impl Into<String>) {
        self.add(LAB, 0, text.into());
    }

    /// Something that `who` said in one of its lives.
    pub fn add(&self, who: &str, life: usize, text: String) {
        let line = Line {
            at: self.now(),
            who: who.to_owned(),
            life,
            text,
        };
        let mut story = self.story();
        if story.lines.len() < LINES_MAX {
            story.lines.push(line);
        }
        self.shared.1.notify_all();
    }

    /// Begins a life: a machine may be powered on twice, and what is left of its first life in a pipe is not of the second.
    pub fn begin(&self) -> usize {
        let mut story = self.story();
        story.lives += 1;
        story.lives
    }

    /// Says that nothing more will come of a life, so that nobody waits for it in vain.
    pub fn end(&self, who: &str, life: usize) {
        self.note(format!("{who} ended"));
        self.story().ended.push(life);
        self.shared.1.notify_all();
    }

    /// The `nth` (counted from one) line of a life of `who` that holds `pattern`, waited for; or why not.
    pub fn wait_for(
        &self,
        who: &str,
        life: usize,
        pattern: &str,
        nth: usize,
        limit: Duration,
    ) -> Result<Line, String> {
        let deadline = Instant::now() + limit;
        let mut story = self.story();
        // A line once looked at is not looked at again: a kernel's boot log is long.
        let (mut looked_at, mut found) = (0, 0);
        loop {
            for line in &story.lines[looked_at..] {
                if line.who == who && line.life == life && line.text.contains(pattern) {
                    found += 1;
                    if found == nth {
                        return Ok(line.clone());
                    }
                }
            }
            looked_at = story.lines.len();
            let seen = format!("wanted {nth}, saw {found}");
            if story.ended.contains(&life) {
                return Err(format!("{who} ended without {pattern:?} ({seen})"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "{who} did not say {pattern:?} within {limit:?} ({seen})"
                ));
            }
            story = (self.shared.1.wait_timeout(story, left))
                .expect("no holder of the story panics")
                .0;
        }
    }

    /// The end of the story, for a person. What went wrong is said after it, where it is found first.
    pub fn told(&self) -> String {
        let story = self.story();
        let skipped = story.lines.len().saturating_sub(SHOWN_MAX);
        let mut text = format!("--- what happened ({skipped} earlier lines left out) ---\n");
        for line in &story.lines[skipped..] {
            let _ = writeln!(
                text,
                "{:9.3} {:12} {}",
                line.at.as_secs_f64(),
                line.who,
                line.text
            );
        }
        text
    }

    fn story(&self) -> MutexGuard<'_, Story> {
        self.shared.0.lock().expect("no holder of the story panics")
    }
}
