//! Weights of modules in files with the names and layouts of PyTorch, which for these models are diffusers' own: what [`save`]
//! writes, diffusers loads, and the other way round with [`load`].
//!
//! [`open`] reads safetensors and PyTorch's own files, also in several parts; what they hold is there as [`Tensors`], whose data are read one by
//! one, so that loading never needs a second copy of the weights.
//!
//! Linear weights are `[out, in]` in a file, and norms have `weight` and `bias`. Where a name can't be the path of a
//! field, a key map, pairs of a regular expression and its replacement, translates.

mod file;
mod layout;
mod pickle;
mod tensors;
mod torch;

pub(crate) use file::{HeaderText, read_tensors, write_tensors};
pub(crate) use layout::{from_compvis, to_compvis};
pub use tensors::Tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{
    ApplyError, BurnToPyTorchAdapter, FloatCastAdapter, KeyRemapper, ModuleAdapter, ModuleContext,
    ModuleSnapshot, PyTorchToBurnAdapter, bridge,
};
use regex::RegexSet;

use crate::atomic::WriteError;

/// How many names of a list an error shows.
const NAMES_SHOWN: usize = 5;

/// Pairs of a regular expression on a name and its replacement, such as `(r"\.net\.0\.proj\.", ".proj_in.")`.
pub type KeyMap<'a> = &'a [(&'a str, &'a str)];

/// Weights that can't be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file can't be opened or read.
    #[error("cannot read weights from {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A folder without weights.
    #[error("no weights in {}: looked for {names}", folder.display())]
    Absent {
        /// The folder.
        folder: PathBuf,
        /// Names of files that would do.
        names: String,
    },
    /// The file is damaged or of another format.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file holds the weights of another architecture.
    #[error("{} does not fit this model: {differences}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// A key map or a list of tensors to skip is no regular expression.
    #[error("invalid pattern for tensor names")]
    Pattern(#[from] regex::Error),
}

impl WeightsError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Write(error) => error.help(),
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path".into())
            }
            Self::Absent { .. } => Some("download or export the model again".into()),
            Self::Unreadable { .. } | Self::Pattern(_) => None,
            Self::Invalid { .. } => {
                Some("download or export the file again; safetensors and PyTorch files (zip format, since version 1.6) are read".into())
            }
            Self::Mismatch { .. } => {
                Some("use the configuration that belongs to these weights".into())
            }
        }
    }

    fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_path_buf(),
            source,
        }
    }

    fn invalid(path: &Path, reason: String) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            reason,
        }
    }
}

/// How the tensors of a file differ from those of a model.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Differences {
    /// In the model but not in the file.
    pub missing: Vec<String>,
    /// In the file, by its names there, but not in the model.
    pub unused: Vec<String>,
    /// In both, with different shapes or types; each entry says what was found and what expected.
    pub unfit: Vec<String>,
}

impl Differences {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.unfit.is_empty()
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [
            ("", &self.unfit),
            ("missing in the file: ", &self.missing),
            ("unknown to the model: ", &self.unused),
        ];
        let mut separator = "";
        for (heading, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(
                f,
                "{separator}{heading}{}",
                names[..names.len().min(NAMES_SHOWN)].join(", ")
            )?;
            if names.len() > NAMES_SHOWN {
                write!(f, " and {} more", names.len() - NAMES_SHOWN)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// How [`save`] writes.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions<'a> {
    /// From paths of fields to names in the file.
    pub key_map: KeyMap<'a>,
    /// Stores floats in half precision.
    pub half: bool,
    /// Entries for the file's header, beside `format: pt`, without which PyTorch's libraries refuse a file.
    pub metadata: BTreeMap<String, String>,
}

/// How [`load`] reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// From names in the file to paths of fields.
    pub key_map: KeyMap<'a>,
    /// Regular expressions on names in the file: a tensor that the model doesn't have is an error unless one matches.
    pub skip: &'a [&'a str],
}

/// Writes the weights of `module` to `path`; the file appears complete or not at all.
///
/// # Errors
/// [`WeightsError`] naming the file.
pub fn save<M: Module>(module: &M, path: &Path, options: &SaveOptions) -> Result<(), WeightsError> {
    let adapter: Box<dyn ModuleAdapter> = if options.half {
        Box::new(BurnToPyTorchAdapter.chain(FloatCastAdapter::to(DType::F16)))
    } else {
        Box::new(BurnToPyTorchAdapter)
    };
    // `valid` brings running statistics up to date, whose last update may be pending.
    let tensors = module.valid().collect(None, Some(adapter), true);
    let (tensors, _) =
        KeyRemapper::from_pattern_iter(options.key_map.iter().copied())?.remap(tensors);
    let mut metadata = options.metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    write_tensors(path, tensors, &metadata)
}

/// Opens a file of weights, whatever its format; each tensor's data are read when they are asked for.
///
/// # Errors
/// [`WeightsError`] naming the file, if it can't be read or is none of safetensors, PyTorch's zip format, and the index of several files of
/// these.
pub fn open(path: &Path) -> Result<Tensors, WeightsError> {
    let start = torch::beginning(path).map_err(|source| WeightsError::unreadable(path, source))?;
    match torch::recognise(&start) {
        Some(torch::Kind::Zip) => torch::open(path),
        Some(torch::Kind::Legacy) => Err(WeightsError::invalid(
            path,
            "in the format that PyTorch wrote before version 1.6: load it with torch.load and save it again".into(),
        )),
        None if start.first().is_some_and(|byte| b"{ \n".contains(byte)) => open_index(path),
        None => {
            let (tensors, _) = read_tensors(path)?;
            Ok(Tensors::new(path, tensors, Vec::new()))
        }
    }
}

/// The index of weights in several files.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<Tensors, WeightsError> {
    let invalid = |reason: String| WeightsError::invalid(path, reason);
    let text = std::fs::read(path).map_err(|source| WeightsError::unreadable(path, source))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| invalid(format!("no index of weights: {error}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut all = Tensors::new(path, Vec::new(), Vec::new());
    for file in index.weight_map.values().collect::<BTreeSet<_>>() {
        // A name, not a path that could lead anywhere.
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(invalid(format!("it names {file:?}, which is no file beside it")));
        }
        all.extend(open(&folder.join(file))?);
    }
    let missing: Vec<String> = (index.weight_map.into_keys())
        .filter(|name| !all.contains(name))
        .collect();
    if missing.is_empty() {
        return Ok(all);
    }
    Err(WeightsError::Mismatch {
        path: path.to_path_buf(),
        differences: Differences {
            missing,
            ..Differences::default()
        },
    })
}

/// Opens the weights in a component's folder of a diffusers or transformers directory: `STEM.safetensors`, else the variant in 16 bits, several
/// files with an index, or the same as PyTorch files.
///
/// # Errors
/// [`WeightsError`] with all names that were looked for if there is none, and those of [`open`].
pub fn find(dir: &Path, stem: &str) -> Result<Tensors, WeightsError> {
    // transformers' PyTorch files have another name.
    let torch_stem = if stem == "model" { "pytorch_model" } else { stem };
    let names = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
        format!("{torch_stem}.bin"),
        format!("{torch_stem}.bin.index.json"),
        format!("{torch_stem}.fp16.bin"),
    ];
    match names.iter().map(|name| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => open(&path),
        None => Err(WeightsError::Absent {
            folder: dir.to_path_buf(),
            names: names.join(", "),
        }),
    }
}

/// Writes `tensors` as they are to a safetensors file, one in memory at a time, floats in 16 bits if `half`.
///
/// # Errors
/// [`WeightsError`] naming the file.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: Tensors,
    half: bool,
) -> Result<(), WeightsError> {
    if let Some(folder) = path.parent() {
        crate::atomic::create_dir(folder)?;
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_tensors(path, narrowed(tensors, half), &metadata)
}

/// Writes `tensors` as they are to a PyTorch file with a `state_dict`, one in memory at a time, floats in 16 bits if `half`.
///
/// # Errors
/// [`WeightsError`] naming the file.
pub(crate) fn write_torch(path: &Path, tensors: Tensors, half: bool) -> Result<(), WeightsError> {
    torch::write(path, narrowed(tensors, half))
}

fn narrowed(tensors: Tensors, half: bool) -> Vec<PackTensor> {
    let tensors = tensors.to_vec();
    if !half {
        return tensors;
    }
    let cast = FloatCastAdapter::to(DType::F16);
    let context = ModuleContext::new(&[]);
    tensors.into_iter().map(|tensor| cast.adapt(tensor, context)).collect()
}

/// Writes tensors in f32 to a safetensors file.
///
/// # Errors
/// [`WeightsError`] naming the file.
pub(crate) fn write_floats(
    path: &Path,
    tensors: Vec<(&str, Tensor<4>)>,
) -> Result<(), WeightsError> {
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        bridge::from_data(tensor.into_data().convert::<f32>(), name.to_owned(), None)
    });
    write_tensors(path, tensors.collect(), &BTreeMap::new())
}

/// Loads the weights of `path` into `module`: [`load_tensors`] of what [`open`] finds there.
///
/// # Errors
/// Those of both.
pub fn load<M: Module>(
    module: M,
    path: &Path,
    options: &LoadOptions,
) -> Result<(M, Vec<String>), WeightsError> {
    load_tensors(module, &open(path)?, options)
}

/// Loads `tensors` into `module` and returns it with the names of the tensors skipped. Floats of any width become the device's float type.
/// Parameters keep their ids and whether they are trained.
///
/// # Errors
/// [`WeightsError`] naming the file and every tensor that is missing, of another shape (with both shapes, in the
/// file's layout), or neither used nor allowed to be skipped.
pub fn load_tensors<M: Module>(
    mut module: M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(M, Vec<String>), WeightsError> {
    let (wanted, skipped) = fit(&module, tensors, options)?;
    let differences = apply(&mut module, wanted, &PyTorchToBurnAdapter);
    match differences.is_empty() {
        true => Ok((module, skipped)),
        false => Err(WeightsError::Mismatch {
            path: tensors.origin().to_path_buf(),
            differences,
        }),
    }
}

/// Whether [`load_tensors`] would work, found out without reading any data.
///
/// # Errors
/// Those of [`load_tensors`].
pub fn check<M: Module>(
    module: &M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(), WeightsError> {
    fit(module, tensors, options).map(drop)
}

/// The tensors that `module` has, by the paths of its fields, and the names of those that it skips.
fn fit<M: Module>(
    module: &M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(Vec<PackTensor>, Vec<String>), WeightsError> {
    let path = tensors.origin();
    let tensors = tensors.to_vec();
    let skip = RegexSet::new(options.skip)?;
    let remapper = KeyRemapper::from_pattern_iter(options.key_map.iter().copied())?;
    let (tensors, renamed) = remapper.remap(tensors);
    let file_names: BTreeMap<String, String> = renamed.into_iter().collect();

    let expected = expected_tensors(module);
    let (wanted, others): (Vec<_>, Vec<_>) = tensors
        .into_iter()
        .partition(|tensor| expected.contains_key(&tensor.name));
    let file_name =
        |tensor: &PackTensor| file_names.get(&tensor.name).unwrap_or(&tensor.name).clone();
    let (skipped, unused) = others
        .iter()
        .map(file_name)
        .partition(|name| skip.is_match(name));

    let found: BTreeSet<&str> = wanted.iter().map(|tensor| tensor.name.as_str()).collect();
    let missing = expected
        .keys()
        .filter(|name| !found.contains(name.as_str()))
        .cloned()
        .collect();
    let unfit = wanted
        .iter()
        .filter(|tensor| tensor.shape != expected[&tensor.name])
        .map(|tensor| unfit(&file_name(tensor), &tensor.shape, &expected[&tensor.name]))
        .collect();
    let differences = Differences {
        missing,
        unused,
        unfit,
    };
    if differences.is_empty() {
        Ok((wanted, skipped))
    } else {
        Err(WeightsError::Mismatch {
            path: path.to_path_buf(),
            differences,
        })
    }
}

/// Puts `tensors`, named by paths of fields, into `module`. Its parameters are part old, part new if there are differences.
pub(crate) fn apply<M: Module>(
    module: &mut M,
    tensors: Vec<PackTensor>,
    adapter: &(impl ModuleAdapter + Clone + 'static),
) -> Differences {
    let dtype = module
        .devices()
        .first()
        .map_or(DType::F32, |device| device.settings().float_dtype.into());
    let adapter = adapter.clone().chain(FloatCastAdapter::to(dtype));
    let result = module.apply(tensors, None, Some(Box::new(adapter)), true);
    let unfit = result.errors.iter().map(|error| match error {
        ApplyError::ShapeMismatch {
            path,
            expected,
            found,
        } => unfit(path, found, expected),
        other => other.to_string(),
    });
    Differences {
        unfit: unfit.collect(),
        missing: result.missing.into_iter().map(|(path, _)| path).collect(),
        unused: result.unused,
    }
}

fn unfit(name: &str, found: &Shape, expected: &Shape) -> String {
    format!(
        "`{name}` has shape {:?}, expected {:?}",
        found.to_vec(),
        expected.to_vec()
    )
}

/// Name and shape, as in a file, of every tensor of `module`, without initialising any.
fn expected_tensors<M: Module>(module: &M) -> BTreeMap<String, Shape> {
    let mut inventory = Inventory::default();
    module.visit(&mut inventory);
    inventory.tensors
}

#[derive(Default)]
struct Inventory {
    path: Vec<String>,
    containers: Vec<String>,
    tensors: BTreeMap<String, Shape>,
}

impl Inventory {
    fn add(&mut self, shape: Shape) {
        // The adapter knows what a tensor is called and how it is laid out in a file. It gets one of the right shape
        // whose data nobody asks for.
        let stand_in = bridge::deferred(
            self.path.join("."),
            DType::F32,
            shape.clone(),
            None,
            move || Ok(TensorData::zeros::<f32, _>(shape.clone())),
        );
        let in_file = BurnToPyTorchAdapter.adapt(stand_in, ModuleContext::new(&self.containers));
        self.tensors.insert(in_file.name, in_file.shape);
    }
}

impl ModuleVisitor for Inventory {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.containers.push(container.to_owned());
        if !container.starts_with("Enum:") {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.containers.pop();
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.lazy_shape());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, burn::tensor::Int>>) {
        self.add(param.lazy_shape());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, burn::tensor::Bool>>) {
        self.add(param.lazy_shape());
    }
}

#[cfg(test)]
mod tests;
