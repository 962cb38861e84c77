//! A TCP proxy that knows who calls: what happens to bytes is said for each of several processes by itself.
//!
//! A caller is found by the socket that it called from, which the kernel lists with its process. Whoever is none of the
//! callers passes always; a connection of one that becomes a caller is ended, so that the next one is a caller's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to the bytes of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections stay open, no byte passes.
    Hang,
    /// Nothing of what the caller says arrives.
    HangRequests,
    /// Nothing of what the caller is answered arrives.
    HangAnswers,
    /// Everything arrives later.
    Delay(Duration),
    /// Open connections are closed and new ones are closed at once.
    Refuse,
    /// Connections are cut in the middle of what they carry next.
    Cut,
    /// So many bytes a second pass in each direction.
    Slow(u64),
    /// What is asked arrives and is done, and instead of the answer the connection ends.
    LoseAnswers,
    /// HTTP: what is asked is answered with 503 and does not arrive.
    Unavailable,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

struct Caller {
    pid: Mutex<Option<u32>>,
    mode: watch::Sender<Mode>,
    bites: AtomicU64,
}

pub struct Link {
    address: SocketAddr,
    callers: Arc<Callers>,
    task: JoinHandle<()>,
}

struct Callers {
    all: Vec<Caller>,
    /// Counts what was said of processes.
    told: watch::Sender<u64>,
}

impl Link {
    /// In front of a port of this host, for as many callers.
    pub async fn start(target: u16, callers: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let caller = |_| Caller {
            pid: Mutex::new(None),
            mode: watch::Sender::new(Mode::Pass),
            bites: AtomicU64::new(0),
        };
        let callers = Arc::new(Callers {
            all: (0..callers).map(caller).collect(),
            told: watch::Sender::new(0),
        });
        let task = tokio::spawn(serve(listener, target, Arc::clone(&callers)));
        Ok(Self {
            address,
            callers,
            task,
        })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Which process a caller is now.
    pub fn is(&self, caller: usize, pid: Option<u32>) {
        let pids = &self.callers.all[caller].pid;
        let before = std::mem::replace(&mut *pids.lock().expect("no holder panics"), pid);
        if before != pid {
            self.callers.told.send_modify(|told| *told += 1);
        }
    }

    pub fn set(&self, caller: usize, mode: Mode) {
        self.callers.all[caller].mode.send_replace(mode);
    }

    /// How often a mode other than passing has done something to a caller's bytes.
    pub fn bites(&self, caller: usize) -> u64 {
        self.callers.all[caller].bites.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: u16, callers: Arc<Callers>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            return;
        };
        let callers = Arc::clone(&callers);
        connections.spawn(async move {
            let mut told = callers.told.subscribe();
            let caller = caller_of(from.port(), &callers.all);
            let is_known_now = async {
                while caller.is_none() && told.changed().await.is_ok() {
                    if caller_of(from.port(), &callers.all).is_some() {
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = connect(stream, target, caller.map(|index| &callers.all[index])) => {}
                () = is_known_now => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The process that has the socket with this local port.
fn caller_of(port: u16, callers: &[Caller]) -> Option<usize> {
    let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let socket = sockets.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.nth(1)? == local).then(|| fields.nth(7).map(str::to_owned))?
    })?;
    let link = format!("socket:[{socket}]");
    callers.iter().position(|caller| {
        let pid = *caller.pid.lock().expect("no holder panics");
        let files = pid.and_then(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok());
        files.into_iter().flatten().flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy() == link)
        })
    })
}

async fn connect(stream: TcpStream, target: u16, caller: Option<&Caller>) {
    let refused = caller.is_some_and(|caller| *caller.mode.borrow() == Mode::Refuse);
    if refused {
        bite(caller);
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let _ = (stream.set_nodelay(true), server.set_nodelay(true));
    let (caller_read, caller_write) = stream.into_split();
    let (server_read, server_write) = server.into_split();
    let to_caller = tokio::sync::Mutex::new(caller_write);
    let to_server = tokio::sync::Mutex::new(server_write);
    let refuses = async {
        let Some(caller) = caller else {
            return std::future::pending().await;
        };
        let mut mode = caller.mode.subscribe();
        let _ = mode.wait_for(|mode| *mode == Mode::Refuse).await;
        bite(Some(caller));
    };
    tokio::select! {
        () = pump(caller_read, &to_server, &to_caller, Way::Request, caller) => {}
        () = pump(server_read, &to_caller, &to_caller, Way::Answer, caller) => {}
        () = refuses => {}
    }
}

fn bite(caller: Option<&Caller>) {
    if let Some(caller) = caller {
        caller.bites.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns when the connection is to end.
async fn pump(
    mut from: OwnedReadHalf,
    to: &tokio::sync::Mutex<OwnedWriteHalf>,
    back: &tokio::sync::Mutex<OwnedWriteHalf>,
    way: Way,
    caller: Option<&Caller>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        if read == 0 {
            return;
        }
        let mut bytes = &buffer[..read];
        let mut mode = caller.map(|caller| caller.mode.subscribe());
        let seen = mode.as_ref().map_or(Mode::Pass, |mode| *mode.borrow());
        if seen != Mode::Pass && seen != Mode::HangAnswers && seen != Mode::HangRequests {
            bite(caller);
        }
        let hangs = |mode: &Mode| {
            *mode == Mode::Hang
                || *mode == Mode::HangRequests && way == Way::Request
                || *mode == Mode::HangAnswers && way == Way::Answer
        };
        match seen {
            seen if hangs(&seen) => {
                bite(caller);
                if let Some(mode) = &mut mode {
                    let _ = mode.wait_for(|mode| !hangs(mode)).await;
                }
            }
            Mode::Delay(delay) => tokio::time::sleep(delay).await,
            Mode::Cut => {
                let _ = to.lock().await.write_all(&bytes[..read / 2]).await;
                return;
            }
            Mode::Slow(rate) => {
                let pause = Duration::from_millis(20);
                let piece = usize::try_from(rate / 50).unwrap_or(1).max(1);
                while bytes.len() > piece {
                    let (now, later) = bytes.split_at(piece);
                    if to.lock().await.write_all(now).await.is_err() {
                        return;
                    }
                    bytes = later;
                    tokio::time::sleep(pause).await;
                }
            }
            Mode::LoseAnswers if way == Way::Answer => return,
            Mode::Unavailable if way == Way::Request => {
                let answer =
                    "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = back.lock().await.write_all(answer.as_bytes()).await;
                return;
            }
            _ => {}
        }
        if to.lock().await.write_all(bytes).await.is_err() {
            return;
        }
    }
}
