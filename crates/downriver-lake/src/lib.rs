//! downriver-lake
