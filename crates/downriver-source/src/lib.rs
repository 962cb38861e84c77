//! downriver-source
