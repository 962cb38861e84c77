//! The Iceberg sink. Not built yet: the crate only pins the libraries that it will stand on.
