//! Paths of one tunnel, without a node around them.
