//! `state.json`: where a run stands, and what the checkpoint's other files must be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(super) const STATE_FILE: &str = "state.json";

/// Where a run stands. Noise and data order follow from the seed and the step, so no generator has state to save.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Steps done.
    pub step: u64,
    /// The run's seed.
    pub seed: u64,
    /// Training examples seen so far.
    pub samples_seen: u64,
    /// A hash of the configuration, by which a resumed run notices changes.
    pub config_hash: String,
    /// How good the weights are, higher for better: PSNR of held-out images in dB, or the negative validation loss. Unknown where
    /// nothing is held out.
    #[serde(default)]
    pub score: Option<f64>,
    /// What the learning rate is multiplied by since steps that were not finite had it lowered.
    #[serde(default = "one")]
    pub rate_scale: f64,
    /// Whatever else the training loop wants back, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

fn one() -> f64 {
    1.0
}

/// What `state.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The version of this program that wrote the checkpoint.
    pub(super) version: String,
    pub(super) state: TrainState,
    pub(super) files: BTreeMap<String, FileCheck>,
}

/// The manifest with its own checksum.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    manifest: Manifest,
    crc32c: u32,
}

/// By which damage to a file is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileCheck {
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
}

impl FileCheck {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut check = Self {
            bytes: 0,
            crc32c: 0,
        };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(check),
                count => {
                    check.bytes += count as u64;
                    check.crc32c = crc32c::crc32c_append(check.crc32c, &buffer[..count]);
                }
            }
        }
    }
}

impl Manifest {
    pub(super) fn new(state: TrainState, files: BTreeMap<String, FileCheck>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state,
            files,
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let crc32c = self.checksum()?;
        serde_json::to_vec_pretty(&Sealed {
            manifest: self.clone(),
            crc32c,
        })
    }

    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        let Sealed { manifest, crc32c } =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match manifest.checksum() {
            Ok(found) if found == crc32c => Ok(manifest),
            _ => Err("wrong checksum".to_owned()),
        }
    }

    fn checksum(&self) -> serde_json::Result<u32> {
        Ok(crc32c::crc32c(&serde_json::to_vec(self)?))
    }
}
