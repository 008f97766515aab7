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
        if text.contains(',') {
            return Err("only `ldm train` takes several devices".into());
        }
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

/// The devices of a training, each of which trains a copy of the model: one, or several of one kind.
#[derive(Clone, Debug)]
pub(crate) struct DeviceList(Vec<DeviceName>);

impl DeviceList {
    /// The devices, without autodiff; at least one.
    pub(crate) fn open(&self) -> Vec<Device> {
        self.0.iter().map(DeviceName::open).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The machine, with these devices as those that were asked for.
    pub(crate) fn hardware(&self) -> Hardware {
        Hardware {
            device: self.to_string(),
            ..self.0[0].hardware()
        }
    }

    /// Several devices have to be of one kind, and different ones unless they are the CPU.
    fn new(devices: Vec<DeviceName>) -> Result<Self, String> {
        for (number, device) in devices.iter().enumerate() {
            let first = &devices[0];
            if device.backend != first.backend {
                return Err(format!(
                    "{first} and {device} are of two kinds, which round differently: their copies of the model would not stay equal"
                ));
            }
            if !device.is_host() && devices[..number].contains(device) {
                return Err(format!("{device} is named twice"));
            }
        }
        Ok(Self(devices))
    }
}

impl FromStr for DeviceList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(',') {
            return Self::new(vec![text.parse()?]);
        }
        let devices = text.split(',').map(|name| match name {
            "" => Err(
                "there is no device at one side of a comma; a list is like cuda:0,cuda:1".into(),
            ),
            name => name.parse().map_err(|problem| format!("{name}: {problem}")),
        });
        Self::new(devices.collect::<Result<_, String>>()?)
    }
}

impl fmt::Display for DeviceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(DeviceName::to_string).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The devices of that backend and those numbers, whether or not it is built in.
    fn list(names: &[(&str, usize)]) -> Result<DeviceList, String> {
        let devices = names.iter().map(|&(name, index)| {
            let backend = BACKENDS.iter().find(|backend| backend.name == name);
            let backend = backend.expect("a name of the table");
            DeviceName { backend, index }
        });
        DeviceList::new(devices.collect())
    }

    #[test]
    fn a_gpu_trains_one_copy_and_the_processor_as_many_as_it_is_told() {
        let gpus = list(&[("cuda", 0), ("cuda", 1)]).unwrap();
        assert_eq!(gpus.to_string(), "cuda,cuda:1");
        assert_eq!(list(&[("flex", 0); 3]).unwrap().open().len(), 3);
        let twice = list(&[("cuda", 1), ("cuda", 0), ("cuda", 1)]).unwrap_err();
        assert_eq!(twice, "cuda:1 is named twice");
        assert!(list(&[("tch:cuda", 0), ("tch:cuda", 0)]).is_err());
    }

    #[test]
    fn devices_of_two_kinds_do_not_train_together() {
        let mixed = list(&[("flex", 0), ("wgpu", 1)]).unwrap_err();
        assert!(mixed.starts_with("flex and wgpu:1 are of two kinds"));
        assert!(list(&[("tch", 0), ("tch:cuda", 0)]).is_err());
    }
}
