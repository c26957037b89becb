//! The two kinds of cable.

/// How packets cross the network between A and B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Variant {
    /// As veth cables do by themselves: super-packets cross whole.
    Normal,
    /// As on a wire: every packet crosses alone.
    Wire,
}

impl Variant {
    pub(super) const ALL: [Self; 2] = [Self::Normal, Self::Wire];

    /// What figures of this variant begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::Wire => "wire.",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Wire => "wire-like",
        }
    }
}
