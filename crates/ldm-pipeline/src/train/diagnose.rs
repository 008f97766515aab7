//! Where a number that is not finite came from.
//!
//! Nothing here runs in a step that works. After a failure the suspects are gone through in order of cause: weights, the
//! batch, and, with the step's forward pass repeated under [`watch::record`], modules, loss terms, gradients.

mod gradients;
pub(super) mod search;
mod stage1;
mod stage2;
#[cfg(test)]
mod tests;

use std::fmt;

pub(super) use stage1::{Micro, Stage1Suspects};
pub(super) use stage2::{Forward, Stage2Suspects};

/// Names of at most this many files go into a message.
const NAMED: usize = 5;

/// What a loss or a gradient that is not finite was traced to.
///
/// Modules go by their names in the weights' files, below `vae`, `discriminator`, `vgg`, `unet` and `conditioner`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// A module whose weights are not finite.
    Weight(String),
    /// Training images.
    Image(Vec<String>),
    /// Latents of training images, by the images' names.
    Latent(Vec<String>),
    /// The noise that was drawn.
    Noise,
    /// A module whose output was not finite although its weights and its input were.
    Module(String),
    /// What goes into a module: a sum or an activation between modules.
    Input(String),
    /// A term of the loss, of finite arguments.
    Term {
        /// Its name in the log.
        name: &'static str,
        /// The module of its own network, where it has one.
        module: Option<String>,
    },
    /// A module whose weights got such a gradient, the first of the backward pass.
    Gradient(String),
    /// A repetition of the step was finite, or only a sum over finite gradients overflowed.
    Unknown,
}

impl Culprit {
    /// Whether going on from the present weights can't help, as it may with another batch.
    #[must_use]
    pub fn is_state_damaged(&self) -> bool {
        matches!(self, Self::Weight(_))
    }

    /// Whether training data are to blame.
    #[must_use]
    pub fn is_in_data(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Latent(_))
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(path) => write!(f, "the weight of `{path}` is not finite"),
            Self::Image(names) => write!(f, "not finite in {}", listed(names)),
            Self::Latent(names) => write!(f, "not finite in the latent of {}", listed(names)),
            Self::Noise => write!(f, "the noise is not finite"),
            Self::Module(path) => write!(f, "first produced by `{path}`"),
            Self::Input(path) => write!(f, "first seen in the input of `{path}`"),
            Self::Term { name, module: None } => {
                write!(f, "first produced by the loss term `{name}`")
            }
            Self::Term {
                name,
                module: Some(module),
            } => write!(f, "first produced by the loss term `{name}`, in `{module}`"),
            Self::Gradient(path) => {
                write!(f, "first produced by the backward pass at `{path}`")
            }
            Self::Unknown => write!(f, "each of its parts is finite here"),
        }
    }
}

fn listed(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMED)].join(", ");
    if names.len() > NAMED {
        text += &format!(" and {} more", names.len() - NAMED);
    }
    text
}
