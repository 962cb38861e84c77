//! The numbers of a board, as both sides know them.

/// The environment variable that names the board's file.
pub const VARIABLE: &str = "DOWNRIVER_SHIM_BOARD";
pub const CELLS: usize = 6;

/// An `i64` of the file in the machine's own byte order, at eight times this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Not zero: what is to be synced is answered with an I/O error, and is not.
    SyncsFail,
    /// How much later syncs are done.
    SyncsLateMs,
    /// What is added to the time of day.
    ClockOffSeconds,
    /// How many syncs failed.
    Failed,
    /// How many syncs were late.
    Late,
    /// How often the time of day was told wrongly.
    Misread,
}
