//! Reads what the server sends, in gulps of whole messages, ahead of whoever decodes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, ReadHalf};
use tokio::sync::mpsc;

use crate::error::SourceError;
use crate::pace::Pace;
use crate::transport::Stream;

const READ_BYTES: usize = 256 << 10;
/// A gulp of this many bytes means that more is waiting.
const BACKLOG_BYTES: usize = 16 << 10;
/// The most that is gathered, but for a message that is larger.
const GULP_BYTES: usize = 1 << 20;
/// Gulps that wait to be decoded.
const GULPS: usize = 1;

/// Says how many bytes the first message of a buffer has, with everything around it; `None`: it is not here whole.
pub(crate) trait Measure: Fn(&[u8]) -> Result<Option<usize>, SourceError> + Send {}

impl<F: Fn(&[u8]) -> Result<Option<usize>, SourceError> + Send> Measure for F {}

/// Whole messages.
#[derive(Default)]
pub(crate) struct Gulp(pub(crate) BytesMut);

impl Gulp {
    pub(crate) fn is_large(&self) -> bool {
        self.0.len() >= BACKLOG_BYTES
    }
}

/// The other end of a [`Reader`].
pub(crate) struct Gulps {
    ready: mpsc::Receiver<Result<Gulp, SourceError>>,
    empty: mpsc::Sender<BytesMut>,
    heard: Arc<Heard>,
}

/// When the server was heard last.
struct Heard {
    start: Instant,
    /// Milliseconds after the start.
    last: AtomicU64,
}

impl Heard {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) {
        self.last.store(self.elapsed_ms(), Ordering::Relaxed);
    }
}

impl Gulps {
    /// For how long nothing was read: nothing came, or nobody took what did.
    pub(crate) fn silent_for(&self) -> Duration {
        let last = self.heard.last.load(Ordering::Relaxed);
        Duration::from_millis(self.heard.elapsed_ms().saturating_sub(last))
    }

    /// Takes what the last gulp was in back for another one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, last: &mut Gulp) -> Result<Gulp, SourceError> {
        let mut buffer = std::mem::take(last).0;
        if (1..=2 * GULP_BYTES).contains(&buffer.capacity()) {
            buffer.clear();
            // There may be one already.
            let _ = self.empty.try_send(buffer);
        }
        match self.ready.recv().await {
            Some(gulp) => gulp,
            None => Err(SourceError::Connection(
                std::io::ErrorKind::UnexpectedEof.into(),
            )),
        }
    }
}

pub(crate) struct Reader<M> {
    measure: M,
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
    /// Bytes of whole messages at the buffer's start.
    whole: usize,
    pace: Pace,
    ready: mpsc::Sender<Result<Gulp, SourceError>>,
    empty: mpsc::Receiver<BytesMut>,
    heard: Arc<Heard>,
}

impl<M: Measure> Reader<M> {
    /// `buffer`: what was read of the stream before.
    pub(crate) fn new(stream: ReadHalf<Stream>, buffer: BytesMut, measure: M) -> (Self, Gulps) {
        let (ready, gulps) = mpsc::channel(GULPS);
        let (empties, empty) = mpsc::channel(GULPS);
        let heard = Arc::new(Heard {
            start: Instant::now(),
            last: AtomicU64::new(0),
        });
        let reader = Self {
            measure,
            stream,
            buffer,
            whole: 0,
            pace: Pace::new(Instant::now()),
            ready,
            empty,
            heard: Arc::clone(&heard),
        };
        let gulps = Gulps {
            ready: gulps,
            empty: empties,
            heard,
        };
        (reader, gulps)
    }

    /// Reads until the connection ends, or nobody wants more. Puts its thread to sleep.
    pub(crate) async fn run(mut self) {
        loop {
            let gulp = self.gulp().await;
            let is_last = gulp.is_err();
            if self.ready.send(gulp).await.is_err() || is_last {
                return;
            }
        }
    }

    async fn gulp(&mut self) -> Result<Gulp, SourceError> {
        std::thread::sleep(self.pace.rest(Instant::now()));
        let began = Instant::now();
        let mut came = None;
        loop {
            self.find_whole();
            if self.whole >= GULP_BYTES {
                break;
            }
            self.buffer.reserve(READ_BYTES);
            let read = if self.whole == 0 {
                // A message that cannot be understood is found once it is first.
                (self.measure)(&self.buffer)?;
                self.stream.read_buf(&mut self.buffer).await
            } else {
                // Only what is there already.
                tokio::select! {
                    biased;
                    read = self.stream.read_buf(&mut self.buffer) => read,
                    () = std::future::ready(()) => break,
                }
            };
            came.get_or_insert_with(Instant::now);
            self.heard.now();
            match read {
                Ok(1..) => {}
                // What came before it comes first.
                _ if self.whole > 0 => break,
                Ok(0) => {
                    return Err(SourceError::Connection(
                        std::io::ErrorKind::UnexpectedEof.into(),
                    ));
                }
                Err(error) => return Err(SourceError::Connection(error)),
            }
        }
        let mut rest = self.empty.try_recv().unwrap_or_default();
        rest.extend_from_slice(&self.buffer[self.whole..]);
        self.buffer.truncate(self.whole);
        self.whole = 0;
        let gulp = Gulp(std::mem::replace(&mut self.buffer, rest));
        let waited = came.map_or_else(Default::default, |came| came - began);
        self.pace.read(waited, Instant::now(), gulp.is_large());
        Ok(gulp)
    }

    /// Looks for the end of the last whole message, up to one that cannot be understood.
    fn find_whole(&mut self) {
        while let Ok(Some(bytes)) = (self.measure)(&self.buffer[self.whole..]) {
            self.whole += bytes;
        }
    }
}
