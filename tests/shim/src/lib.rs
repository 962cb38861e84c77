//! Stands between a process and its C library (`LD_PRELOAD`), and answers some calls as a bad disk or a wrong clock would:
//! `fsync` and `fdatasync` fail or are late, `clock_gettime` is wrong about the time of day.
//!
//! What is to be done, and how often it was done, are numbers in a file that the process maps and whoever hurts it writes and
//! reads: see `board.rs` of the testkit. Without that file every call is passed on as it is.

#[path = "../../../crates/downriver-testkit/src/board/cell.rs"]
mod cell;

use std::ffi::{c_int, c_long};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use cell::{CELLS, Cell, VARIABLE};

type Cells = [AtomicI64; CELLS];

static BOARD: OnceLock<&'static Cells> = OnceLock::new();

/// Called by the loader before the program's own code, so that no call has to ask whether the board is open.
// SAFETY: what stands in this section are functions that the loader calls once; the arguments that it passes are not used.
#[used]
#[unsafe(link_section = ".init_array")]
static OPEN: extern "C" fn() = open;

extern "C" fn open() {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else {
        return;
    };
    // SAFETY: a new mapping, which is nobody's memory yet.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Cells>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped != libc::MAP_FAILED {
        // SAFETY: a page is aligned for numbers, has the cells (its maker gave the file that size), and stays mapped until
        // the process ends. Others write to it, and so it is only ever seen as atomics.
        let _ = BOARD.set(unsafe { &*mapped.cast::<Cells>() });
    }
}

/// Zero, which is to do nothing, where there is no board.
fn value(cell: Cell) -> i64 {
    BOARD
        .get()
        .map_or(0, |board| board[cell as usize].load(Ordering::Relaxed))
}

fn count(cell: Cell) {
    if let Some(board) = BOARD.get() {
        board[cell as usize].fetch_add(1, Ordering::Relaxed);
    }
}

fn sync(call: c_long, file: c_int) -> c_int {
    if value(Cell::SyncsFail) != 0 {
        count(Cell::Failed);
        // SAFETY: the thread's own.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    if let Ok(late @ 1..) = u64::try_from(value(Cell::SyncsLateMs)) {
        count(Cell::Late);
        std::thread::sleep(Duration::from_millis(late));
    }
    // SAFETY: either call takes a number, and answers one that is not a file with an error.
    unsafe { libc::syscall(call, file) as c_int }
}

// SAFETY, here and below: the name and the signature are those of the C library, whose function this stands in for.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    sync(libc::SYS_fsync, file)
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(libc::SYS_fdatasync, file)
}

/// # Safety
/// As of the C library's: `time` is written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: as the caller promises.
    let answer = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    let is_of_day = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    let off = value(Cell::ClockOffSeconds);
    if answer == 0 && is_of_day && off != 0 {
        count(Cell::Misread);
        // SAFETY: the kernel has just written there.
        unsafe { (*time).tv_sec += off };
    }
    answer
}
