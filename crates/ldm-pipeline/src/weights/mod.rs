//! Weights of modules in files with the names and layouts of PyTorch, which for these models are diffusers' own: what
//! [`save`] writes, diffusers loads, and the other way round with [`load`].
//!
//! [`open`] reads safetensors, PyTorch checkpoints and sharded sets of either as [`Tensors`], [`load_from`] puts them
//! into a module, and [`from_compvis`] stands between for checkpoints of the original code.
//!
//! Linear weights are `[out, in]` in a file, and norms have `weight` and `bias`. Where a name can't be the path of a
//! field, a key map, pairs of a regular expression and its replacement, translates.

mod apply;
mod compvis;
mod error;
mod open;
mod safetensors;
mod source;
mod tensors;
mod torch;

pub(crate) use apply::apply;
pub use compvis::{ema_name, from_compvis, to_compvis, unclaimed, with_ema};
pub use error::{Differences, WeightsError};
pub use open::{find, open};
pub(crate) use safetensors::{HeaderText, read_tensors, write_tensors};
pub use tensors::Tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, KeyRemapper, ModuleAdapter, ModuleSnapshot,
};
use regex::RegexSet;

use apply::{FromPyTorch, expected_tensors, unfit};

/// Pairs of a regular expression on a name and its replacement, such as `(r"\.net\.0\.proj\.", ".proj_in.")`.
pub type KeyMap<'a> = &'a [(&'a str, &'a str)];

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

/// How [`load`] and [`load_from`] read.
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
    let mut metadata = options.metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let tensors = collect(module, options.key_map, options.half)?;
    write_tensors(path, tensors.to_tensors(), &metadata)
}

/// The weights of `module` with PyTorch's layouts, under the names that `key_map` makes of paths of fields; `half` in
/// 16-bit floats. Data is read from the device when it is asked for.
///
/// # Errors
/// If the key map holds no regular expressions.
pub fn collect<M: Module>(
    module: &M,
    key_map: KeyMap,
    half: bool,
) -> Result<Tensors, WeightsError> {
    let adapter: Box<dyn ModuleAdapter> = if half {
        Box::new(BurnToPyTorchAdapter.chain(FloatCastAdapter::to(DType::F16)))
    } else {
        Box::new(BurnToPyTorchAdapter)
    };
    // `valid` brings running statistics up to date, whose last update may be pending.
    let tensors = module.valid().collect(None, Some(adapter), true);
    let (tensors, _) = KeyRemapper::from_pattern_iter(key_map.iter().copied())?.remap(tensors);
    Ok(Tensors::from_tensors(Path::new("the model"), tensors))
}

/// Writes `tensors` to `path`: in PyTorch's format if it ends in `.ckpt`, `.pt`, `.pth` or `.bin`, else as safetensors.
/// PyTorch's files have the tensors under `state_dict` and beside it `metadata`, whose numbers are numbers there. The file
/// appears complete or not at all.
///
/// # Errors
/// [`WeightsError`] naming the file, or the tensor whose type the format lacks.
pub fn write(
    path: &Path,
    tensors: &Tensors,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let pickled = ["ckpt", "pt", "pth", "bin"];
    match path.extension().and_then(|end| end.to_str()) {
        Some(end) if pickled.contains(&end) => torch::write(path, tensors, metadata),
        _ => {
            let mut metadata = metadata.clone();
            metadata.insert("format".to_owned(), "pt".to_owned());
            write_tensors(path, tensors.to_tensors(), &metadata)
        }
    }
}

/// Loads the weights of `path`, in any of the formats of [`open`], as [`load_from`] does.
///
/// # Errors
/// As [`open`] and [`load_from`].
pub fn load<M: Module>(
    module: M,
    path: &Path,
    options: &LoadOptions,
) -> Result<(M, Vec<String>), WeightsError> {
    load_from(module, &open(path)?, options)
}

/// Loads `tensors` into `module` and returns it with the names of the tensors skipped. Floats of any width become the
/// device's float type. Parameters keep their ids and whether they are trained. Beside the module there is never more
/// than one tensor in memory.
///
/// # Errors
/// [`WeightsError`] naming the file and every tensor that is missing, of another shape (with both shapes, in the
/// file's layout), or neither used nor allowed to be skipped.
pub fn load_from<M: Module>(
    mut module: M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(M, Vec<String>), WeightsError> {
    let (wanted, skipped) = fit(&module, tensors, options)?;
    let differences = apply(&mut module, wanted, &FromPyTorch);
    if differences.is_empty() {
        Ok((module, skipped))
    } else {
        Err(WeightsError::mismatch(&tensors.path, differences))
    }
}

/// Finds out whether [`load_from`] would work, without reading any data.
///
/// # Errors
/// As [`load_from`].
pub fn check<M: Module>(
    module: &M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(), WeightsError> {
    fit(module, tensors, options).map(drop)
}

/// The tensors that `module` has, by the paths of its fields, and the names of those that are skipped.
fn fit<M: Module>(
    module: &M,
    tensors: &Tensors,
    options: &LoadOptions,
) -> Result<(Vec<PackTensor>, Vec<String>), WeightsError> {
    let skip = RegexSet::new(options.skip)?;
    let remapper = KeyRemapper::from_pattern_iter(options.key_map.iter().copied())?;
    let keys = tensors.entries.values().map(|entry| entry.key.as_str());
    let (renamed, _) = remapper.remap(tensors.to_tensors());

    let expected = expected_tensors(module);
    let mut found = BTreeSet::new();
    let mut wanted: Vec<(&str, PackTensor)> = Vec::new();
    let mut others: Vec<&str> = Vec::new();
    for (key, tensor) in keys.zip(renamed) {
        // Of two that become the same the second is one too many.
        if expected.contains_key(&tensor.name) && found.insert(tensor.name.clone()) {
            wanted.push((key, tensor));
        } else {
            others.push(key);
        }
    }
    let names = others.into_iter().map(str::to_owned);
    let (skipped, unused) = names.partition(|name| skip.is_match(name));

    let missing: Vec<String> = expected
        .keys()
        .filter(|name| !found.contains(*name))
        .cloned()
        .collect();
    let shapes = wanted
        .iter()
        .filter(|(_, tensor)| tensor.shape != expected[&tensor.name])
        .map(|(key, tensor)| unfit(key, &tensor.shape, &expected[&tensor.name]));
    let mut unfit: Vec<String> = shapes.collect();
    if !missing.is_empty() {
        let refused = tensors.refused.iter();
        unfit.extend(refused.map(|(name, what)| format!("`{name}` is {what}")));
    }
    let differences = Differences {
        missing,
        unused,
        unfit,
    };
    if differences.is_empty() {
        let wanted = wanted.into_iter().map(|(_, tensor)| tensor);
        Ok((wanted.collect(), skipped))
    } else {
        Err(WeightsError::mismatch(&tensors.path, differences))
    }
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod tests;
