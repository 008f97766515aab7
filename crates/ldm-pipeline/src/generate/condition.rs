//! What one image is to show.

use super::LabelMap;

/// What one image is to show.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Condition {
    /// Whatever the model draws by itself.
    #[default]
    Nothing,
    /// What a text says.
    Prompt(String),
    /// A class, counted from 0.
    Class(usize),
    /// A scene by the label of each pixel.
    Labels(LabelMap),
    /// Something between two prompts or two classes.
    Between(Box<Blend>),
}

/// Two conditions whose contexts are mixed linearly, `(1 - share) from + share to`.
#[derive(Clone, Debug, PartialEq)]
pub struct Blend {
    /// The condition at a share of 0.
    pub from: Condition,
    /// The condition at a share of 1.
    pub to: Condition,
    /// Share of `to`, in `[0, 1]`.
    pub share: f64,
}

impl Condition {
    /// The condition that is mixed in first, or this one where nothing is mixed.
    pub(super) fn from(&self) -> &Self {
        match self {
            Self::Between(blend) => &blend.from,
            plain => plain,
        }
    }

    /// The condition that is mixed in last, or this one where nothing is mixed.
    pub(super) fn to(&self) -> &Self {
        match self {
            Self::Between(blend) => &blend.to,
            plain => plain,
        }
    }

    /// Share of [`to`](Self::to).
    pub(super) fn share(&self) -> f64 {
        match self {
            Self::Between(blend) => blend.share,
            _ => 0.0,
        }
    }
}
