//! A thread of its own for a connection that is read in gulps.
//!
//! A socket that a runtime watches wakes it for every packet, also while its reader only wants to let more gather. Here
//! the reader puts its whole thread to sleep instead, and what comes meanwhile wakes nobody.

use std::convert::Infallible;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What was spawned on it ends when it is dropped.
pub(crate) struct Wire {
    handle: Handle,
    _stop: oneshot::Sender<Infallible>,
}

impl Wire {
    /// # Errors
    /// The system has no thread left, or no files.
    pub(crate) fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("wire".into());
        thread.spawn(move || {
            // Nothing is ever sent.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self {
            handle,
            _stop: stop,
        })
    }

    /// The future may put the thread to sleep. What it connects is watched by this thread alone, whoever uses it.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(future)
    }
}
