//! `--device`: names of devices, and which of them this build has.

use std::{fmt, str::FromStr};

use burn::tensor::Device;
use ldm_pipeline::hardware::Hardware;

/// A device as the user names it: a backend and, where there are several devices, a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceName {
    backend: &'static Backend,
    index: usize,
}

/// A backend that `ldm` knows of, whether or not it was built in.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Its name on the command line, and that of the cargo feature that builds it in, unless `feature` says otherwise.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) description: &'static str,
    /// Name of the cargo feature.
    pub(crate) feature: &'static str,
    /// Whether `name:1` means anything.
    indexed: bool,
    /// Opens device number `index`; `None` in a build without the feature.
    open: Option<fn(usize) -> Device>,
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Backend {}

/// `Some` of the expression if the feature is on.
macro_rules! with_feature {
    ($feature:literal, $open:expr) => {{
        #[cfg(feature = $feature)]
        let open: Option<fn(usize) -> Device> = Some($open);
        #[cfg(not(feature = $feature))]
        let open = None;
        open
    }};
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn gpu(index: usize) -> burn::tensor::DeviceKind {
    match index {
        0 => burn::tensor::DeviceKind::DefaultDevice,
        index => burn::tensor::DeviceKind::DiscreteGpu(index),
    }
}

/// All backends, the default first.
pub(crate) static BACKENDS: [Backend; 8] = [
    Backend {
        name: "flex",
        description: "CPU, pure Rust, with ldm's own kernels",
        feature: "flex",
        indexed: false,
        open: with_feature!("flex", |_| Device::flex()),
    },
    Backend {
        name: "wgpu",
        description: "GPU through WebGPU: Vulkan, Metal or DirectX 12",
        feature: "wgpu",
        indexed: true,
        open: with_feature!("wgpu", |index| Device::wgpu(gpu(index))),
    },
    Backend {
        name: "vulkan",
        description: "GPU through Vulkan",
        feature: "vulkan",
        indexed: true,
        open: with_feature!("vulkan", |index| Device::vulkan(gpu(index))),
    },
    Backend {
        name: "metal",
        description: "GPU of a Mac",
        feature: "metal",
        indexed: true,
        open: with_feature!("metal", |index| Device::metal(gpu(index))),
    },
    Backend {
        name: "cuda",
        description: "NVIDIA GPU",
        feature: "cuda",
        indexed: true,
        open: with_feature!("cuda", Device::cuda),
    },
    Backend {
        name: "rocm",
        description: "AMD GPU",
        feature: "rocm",
        indexed: true,
        open: with_feature!("rocm", Device::rocm),
    },
    Backend {
        name: "tch",
        description: "CPU through LibTorch",
        feature: "tch",
        indexed: false,
        open: with_feature!("tch", |_| Device::libtorch()),
    },
    Backend {
        name: "tch:cuda",
        description: "NVIDIA GPU through LibTorch",
        feature: "tch",
        indexed: true,
        open: with_feature!("tch", Device::libtorch_cuda),
    },
];

impl Backend {
    /// Whether this build has it.
    pub(crate) fn is_built(&self) -> bool {
        self.open.is_some()
    }
}

impl DeviceName {
    /// The device, without autodiff.
    pub(crate) fn open(&self) -> Device {
        let open = (self.backend.open).expect("a name is only parsed if its backend is built in");
        open(self.index)
    }

    /// The machine, with this device as the one that was asked for.
    pub(crate) fn hardware(&self) -> Hardware {
        let built = BACKENDS.iter().filter(|backend| backend.is_built());
        let built_with = built.map(|backend| backend.name.to_owned()).collect();
        Hardware::detect(self.to_string(), built_with)
    }

    /// Whether its memory is the process'.
    pub(crate) fn is_host(&self) -> bool {
        ["flex", "tch"].contains(&self.backend.name)
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.rsplit_once(':') {
            Some((name, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let index = digits
                    .parse()
                    .map_err(|_| format!("`{digits}` is no device number"))?;
                (name, Some(index))
            }
            _ => (text, None),
        };
        let built: Vec<&str> = (BACKENDS.iter())
            .filter(|backend| backend.is_built())
            .map(|backend| backend.name)
            .collect();
        let backend = (BACKENDS.iter())
            .find(|backend| backend.name == name)
            .ok_or_else(|| {
                format!(
                    "there is no such device; this build has {}",
                    built.join(", ")
                )
            })?;
        if !backend.is_built() {
            return Err(format!(
                "this build has no {name}, only {}: build it with `cargo build --release --features {}`",
                built.join(", "),
                backend.feature
            ));
        }
        if index.is_some() && !backend.indexed {
            return Err(format!("{name} has no numbered devices"));
        }
        Ok(Self {
            backend,
            index: index.unwrap_or(0),
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => f.write_str(self.backend.name),
            index => write!(f, "{}:{index}", self.backend.name),
        }
    }
}
