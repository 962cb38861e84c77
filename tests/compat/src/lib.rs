//! Old bytes must stay readable: a fixture for each version of each stored form. The tests lie in `tests/`.
