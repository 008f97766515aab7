//! What is known of a set of pictures, in memory and in files.

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    error::Error,
    extract::Collected,
    features::Features,
    gaussian::{Gaussian, GaussianAccumulator},
    npz,
};

/// Key of the features' name in a file's header.
const NAME: &str = "features";

/// What is known of a set of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct SetStatistics {
    /// What the features are, see [`Extractor::name`](crate::Extractor::name); `None` in files of other programs.
    pub name: Option<String>,
    /// Mean and covariance of the features.
    pub gaussian: Gaussian,
    /// Those of the intermediate features of sFID.
    pub spatial: Option<Gaussian>,
    /// The features themselves, `[N, D]`.
    pub features: Option<Features>,
}

impl SetStatistics {
    /// Mean and covariance of collected features, which are called `name`; `set` is what the pictures are called.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub fn of(collected: Collected, name: String, set: &str) -> Result<Self, Error> {
        let features = collected.features;
        let mut gaussian = GaussianAccumulator::new(features.dim());
        gaussian.push(features.values());
        let gaussian = gaussian.finish().ok_or_else(|| Error::TooFew {
            set: set.into(),
            found: "one picture".into(),
            what: "a covariance",
            needed: 2,
        })?;
        Ok(Self {
            name: Some(name),
            gaussian,
            spatial: collected.spatial,
            features: Some(features),
        })
    }

    /// Number of pictures, where it is known.
    pub fn count(&self) -> Option<usize> {
        self.features.as_ref().map(Features::len)
    }

    /// Reads a file: safetensors as [`to_bytes`](Self::to_bytes) writes it, or an .npz with `mu` and `sigma`, and perhaps `mu_s` and
    /// `sigma_s`, as pytorch-fid and guided-diffusion write it.
    ///
    /// # Errors
    /// If it can't be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let parsed = if bytes.starts_with(b"PK") {
            Self::from_npz(&bytes)
        } else {
            Self::from_safetensors(&bytes)
        };
        parsed.map_err(|problem| Error::Statistics {
            path: path.into(),
            problem,
        })
    }

    fn from_npz(bytes: &[u8]) -> Result<Self, String> {
        let arrays = npz::read(bytes)?;
        let array = |name: &str| {
            let array = arrays.get(name);
            array.map(|array| (array.shape.clone(), array.values.clone()))
        };
        Self::of_arrays(array, None, None)
    }

    fn from_safetensors(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|_| "it is neither an .npz nor a safetensors file".to_owned())?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let name = (header.metadata().as_ref()).and_then(|text| text.get(NAME).cloned());
        let array = |name: &str| {
            let tensor = tensors.tensor(name).ok()?;
            if tensor.dtype() != Dtype::F64 {
                return None;
            }
            let (values, _) = tensor.data().as_chunks::<8>();
            let values = values.iter().map(|&bytes| f64::from_le_bytes(bytes));
            Some((tensor.shape().to_vec(), values.collect()))
        };
        let features = match tensors.tensor("features") {
            Ok(tensor) => match tensor.shape() {
                &[_, dim] if dim > 0 && tensor.dtype() == Dtype::F32 => {
                    let (values, _) = tensor.data().as_chunks::<4>();
                    let values = values.iter().map(|&bytes| f32::from_le_bytes(bytes));
                    Some(Features::from_values(dim, values.collect()))
                }
                shape => {
                    return Err(format!(
                        "`features` is {} of shape {shape:?}, not F32 of [N, D]",
                        tensor.dtype()
                    ));
                }
            },
            Err(_) => None,
        };
        Self::of_arrays(array, name, features)
    }

    fn of_arrays(
        array: impl Fn(&str) -> Option<(Vec<usize>, Vec<f64>)>,
        name: Option<String>,
        features: Option<Features>,
    ) -> Result<Self, String> {
        let gaussian = |mean: &str, covariance: &str| {
            let Some((shape, values)) = array(mean) else {
                return Err(format!("there is no `{mean}`"));
            };
            let Some((square, covariances)) = array(covariance) else {
                return Err(format!("there is no `{covariance}`"));
            };
            let dim = values.len();
            if dim == 0 || shape != [dim] || square != [dim, dim] {
                return Err(format!(
                    "`{mean}` has shape {shape:?} and `{covariance}` {square:?}, not [D] and [D, D]"
                ));
            }
            if values.iter().chain(&covariances).any(|v| !v.is_finite()) {
                return Err(format!(
                    "`{mean}` or `{covariance}` holds what is no number"
                ));
            }
            Ok(Gaussian {
                mean: values,
                covariance: covariances,
            })
        };
        let statistics = Self {
            name,
            gaussian: gaussian("mu", "sigma")?,
            spatial: match array("mu_s") {
                Some(_) => Some(gaussian("mu_s", "sigma_s")?),
                None => None,
            },
            features,
        };
        match &statistics.features {
            Some(features) if features.dim() != statistics.gaussian.dim() => Err(format!(
                "`features` has {} columns, but `mu` {}",
                features.dim(),
                statistics.gaussian.dim()
            )),
            _ => Ok(statistics),
        }
    }

    /// A safetensors file: `mu`, `sigma`, `mu_s`, `sigma_s` in f64 and `features` in f32, as far as they are there.
    ///
    /// # Panics
    /// If mean and covariance don't fit together.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut arrays: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let gaussians = [
            (Some(&self.gaussian), ["mu", "sigma"]),
            (self.spatial.as_ref(), ["mu_s", "sigma_s"]),
        ];
        for (gaussian, [mean, covariance]) in gaussians {
            let Some(gaussian) = gaussian else { continue };
            let dim = gaussian.dim();
            arrays.push((mean, Dtype::F64, vec![dim], bytes(&gaussian.mean)));
            let values = bytes(&gaussian.covariance);
            arrays.push((covariance, Dtype::F64, vec![dim, dim], values));
        }
        if let Some(features) = &self.features {
            let values = features.values().iter().flat_map(|v| v.to_le_bytes());
            let shape = vec![features.len(), features.dim()];
            arrays.push(("features", Dtype::F32, shape, values.collect()));
        }
        let views = arrays.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (*name, view.expect("a shape with its values"))
        });
        let header = (self.name.clone()).map(|name| HashMap::from([(NAME.to_owned(), name)]));
        safetensors::serialize(views, header).expect("names without duplicates")
    }
}
