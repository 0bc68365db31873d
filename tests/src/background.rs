//! What runs beside a test, on a thread of its own with a runtime of its own, until it is dropped.
//!
//! A thread is in the namespace of the thread that made it, so whatever is started inside of `Netns::run` lives there.

use std::thread::JoinHandle;

use tokio_util::sync::{CancellationToken, DropGuard};

/// Dropping it ends the future, whatever it spawned, and the sockets of both, before anything else happens.
pub struct Background {
    stop: Option<DropGuard>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs the future that is made on the new thread.
    pub fn start<F: Future<Output = ()>>(make: impl FnOnce() -> F + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime");
            runtime.block_on(async { stopped.run_until_cancelled(make()).await });
        });
        Self {
            stop: Some(stop.drop_guard()),
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
