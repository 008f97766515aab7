//! What can't be measured, and what to do about it.

use std::{io, path::PathBuf};

/// A measurement that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fewer pictures than the measure is defined for.
    #[error("{set} has {found}, too few for {what}, which needs {needed}")]
    TooFew {
        /// The set of pictures, by its path.
        set: String,
        /// How many there are, with their noun.
        found: String,
        /// The measure.
        what: &'static str,
        /// How many it takes.
        needed: usize,
    },
    /// Pictures that should be of one size.
    #[error("{name} has {} x {} pixels, but {first} has {} x {}", found[0], found[1], expected[0], expected[1])]
    Sizes {
        /// The picture that differs.
        name: String,
        /// Its width and height.
        found: [u32; 2],
        /// The first picture.
        first: String,
        /// Its width and height.
        expected: [u32; 2],
    },
    /// Pictures too small for a measure.
    #[error("the pictures have {} x {} pixels: {what} needs at least {needed} a side", size[0], size[1])]
    TooSmall {
        /// Width and height.
        size: [u32; 2],
        /// The measure.
        what: &'static str,
        /// Least side in pixels.
        needed: u32,
    },
    /// Statistics of features that can't be compared with each other.
    #[error("the statistics in {first} are of {}, those of {second} of {}", features[0], features[1])]
    OtherFeatures {
        /// Where the ones come from.
        first: String,
        /// Where the others come from.
        second: String,
        /// What each is of.
        features: [String; 2],
    },
    /// A file of statistics that holds something else.
    #[error("{} holds no statistics of features: {problem}", path.display())]
    Statistics {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Features that aren't numbers.
    #[error("the {network} network gives features that are not finite")]
    NotFinite {
        /// The network.
        network: &'static str,
    },
    /// An eigenvalue decomposition without a result.
    #[error("the eigenvalues of a covariance were not found")]
    Eigenvalues,
    /// The work was stopped from outside.
    #[error("stopped before the measurement was complete")]
    Stopped,
}

impl Error {
    /// What to do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::TooFew { .. } => "add pictures: distributions are usually compared by 10,000 or more, and a few hundred are the least that says anything".into(),
            Self::Sizes { .. } => {
                "bring all to one size, the middle of each, with --resolution N".into()
            }
            Self::TooSmall { .. } => "bring them to a larger size with --resolution N".into(),
            Self::OtherFeatures { .. } => {
                "make the statistics anew from the folder of pictures, with the network and the convention of this run".into()
            }
            Self::Statistics { .. } => {
                "give a folder of pictures, an .npz with `mu` and `sigma` as pytorch-fid writes it, or a file that --save-stats wrote".into()
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the path".into()
            }
            Self::NotFinite { .. } => "the file of weights is damaged or of another network".into(),
            Self::Eigenvalues => {
                "the statistics are damaged: make them anew from the pictures".into()
            }
            Self::Read { .. } | Self::Stopped => return None,
        })
    }
}
