//! downriver-testkit
