//! downriver-decode
