//! Tensors of CompVis checkpoints under diffusers' names, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Shape, TensorData};
use burn_store::bridge;
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use ldm_nn::weights::{KeyPair, Layout};

use super::source::aligned;
use super::tensors::Tensors;
use super::{Differences, WeightsError};

/// What CompVis' average of the weights is called.
const EMA_PREFIX: &str = "model_ema.";
/// What precedes a name of which the average has no part, in latent diffusion models.
const MODEL_PREFIX: &str = "model.";

/// The tensors of a component, under diffusers' names: each pair's from `prefix` and its CompVis key. Data is converted
/// when it is asked for.
///
/// # Errors
/// [`WeightsError::Mismatch`] with the keys, in the file, of all tensors that are missing or of an impossible shape.
pub fn from_compvis(
    tensors: &Tensors,
    prefix: &str,
    pairs: &[KeyPair],
) -> Result<Tensors, WeightsError> {
    let mut set = Tensors::new(&tensors.path);
    let mut differences = Differences::default();
    for pair in pairs {
        let key = format!("{prefix}{}", pair.compvis);
        let Some(entry) = tensors.entries.get(&key) else {
            if let Some(what) = tensors.refused.get(&key) {
                differences.unfit.push(format!("`{key}` is {what}"));
            } else {
                differences.missing.push(key);
            }
            continue;
        };
        let mut tensor = entry.tensor.clone();
        tensor.name.clone_from(&pair.diffusers);
        match unpack(tensor, pair.layout) {
            Ok(tensor) => set.add(entry.key.clone(), tensor),
            Err(problem) => differences.unfit.push(format!("`{}` {problem}", entry.key)),
        }
    }
    if differences.is_empty() {
        Ok(set)
    } else {
        Err(WeightsError::mismatch(&tensors.path, differences))
    }
}

/// The inverse of [`from_compvis`]: tensors under diffusers' names as those of a checkpoint. Projections that CompVis
/// fuses are joined.
///
/// # Errors
/// [`WeightsError::Mismatch`] with the names of all tensors that are missing, or don't go together.
pub fn to_compvis(
    tensors: &Tensors,
    prefix: &str,
    pairs: &[KeyPair],
) -> Result<Tensors, WeightsError> {
    let mut set = Tensors::new(&tensors.path);
    let mut differences = Differences::default();
    let mut fused: BTreeMap<&str, [Option<(PackTensor, usize)>; 3]> = BTreeMap::new();
    for pair in pairs {
        let Some(entry) = tensors.entries.get(&pair.diffusers) else {
            differences.missing.push(pair.diffusers.clone());
            continue;
        };
        let mut tensor = entry.tensor.clone();
        tensor.name = format!("{prefix}{}", pair.compvis);
        match pair.layout {
            Layout::Same => set.add(entry.key.clone(), tensor),
            Layout::Pointwise { axes } => {
                let mut shape = tensor.shape.to_vec();
                shape.extend(vec![1; axes]);
                set.add(entry.key.clone(), reshaped(tensor, shape));
            }
            Layout::Qkv { part, heads } => {
                fused.entry(&pair.compvis).or_default()[part] = Some((tensor, heads));
            }
        }
    }
    for (key, parts) in fused {
        // A part that is absent is among the missing already.
        let [Some((q, heads)), Some((k, _)), Some((v, _))] = parts else {
            continue;
        };
        match fuse([q, k, v], heads) {
            Some(tensor) => set.add(key.to_owned(), tensor),
            None => differences.unfit.push(format!(
                "the parts of `{prefix}{key}` have different shapes or types"
            )),
        }
    }
    if differences.is_empty() {
        Ok(set)
    } else {
        Err(WeightsError::mismatch(&tensors.path, differences))
    }
}

/// The names of `tensors` that none of `parts`, prefixes and their pairs, has taken.
#[must_use]
pub fn unclaimed(tensors: &Tensors, parts: &[(&str, &[KeyPair])]) -> Vec<String> {
    let claimed: BTreeSet<String> = parts
        .iter()
        .flat_map(|(prefix, pairs)| {
            pairs
                .iter()
                .map(move |pair| format!("{prefix}{}", pair.compvis))
        })
        .collect();
    let rest = tensors.names().filter(|name| !claimed.contains(*name));
    rest.map(str::to_owned).collect()
}

/// CompVis' name of the average of `name`: `model_ema.` and the name in the averaged module without its dots.
#[must_use]
pub fn ema_name(name: &str) -> String {
    let inner = name.strip_prefix(MODEL_PREFIX).unwrap_or(name);
    format!("{EMA_PREFIX}{}", inner.replace('.', ""))
}

/// The checkpoint with its averaged weights in place of the raw ones, `None` if it has no averages. The averages' own names
/// are gone; counters such as `model_ema.num_updates` stay.
///
/// # Errors
/// [`WeightsError`] if an average has another shape than its tensor, or belongs to two.
pub fn with_ema(tensors: &Tensors) -> Result<Option<Tensors>, WeightsError> {
    let mut set = tensors.clone();
    let mut used: BTreeMap<String, &str> = BTreeMap::new();
    for (name, raw) in &tensors.entries {
        let ema = ema_name(name);
        let Some(average) = tensors.entries.get(&ema) else {
            continue;
        };
        if average.tensor.shape != raw.tensor.shape {
            let problem = format!(
                "`{ema}` has shape {:?}, expected {:?}",
                average.tensor.shape.to_vec(),
                raw.tensor.shape.to_vec()
            );
            return Err(WeightsError::invalid(&tensors.path, problem));
        }
        let mut entry = average.clone();
        entry.tensor.name.clone_from(name);
        set.entries.insert(name.clone(), entry);
        if let Some(other) = used.insert(ema, name) {
            let problem = format!("`{other}` and `{name}` have the same name in {EMA_PREFIX}");
            return Err(WeightsError::invalid(&tensors.path, problem));
        }
    }
    set.entries.retain(|name, _| !used.contains_key(name));
    Ok((!used.is_empty()).then_some(set))
}

/// The tensor of a checkpoint in diffusers' layout, or what is wrong with its shape.
fn unpack(tensor: PackTensor, layout: Layout) -> Result<PackTensor, String> {
    let shape = tensor.shape.to_vec();
    match layout {
        Layout::Same => Ok(tensor),
        Layout::Pointwise { axes } => match shape.split_at_checked(2) {
            Some((matrix, kernel))
                if kernel.len() == axes && kernel.iter().all(|side| *side == 1) =>
            {
                Ok(reshaped(tensor, matrix.to_vec()))
            }
            _ => Err(format!(
                "has shape {shape:?}, expected two axes and {axes} of 1"
            )),
        },
        Layout::Qkv { part, heads } => {
            let rows = match shape.as_slice() {
                [rows] | [rows, _, 1] if heads > 0 && rows % (3 * heads) == 0 => *rows,
                _ => {
                    return Err(format!(
                        "has shape {shape:?}, expected queries, keys and values of {heads} heads, [3 O] or [3 O, I, 1]"
                    ));
                }
            };
            let mut out = shape[..shape.len().min(2)].to_vec();
            out[0] = rows / 3;
            let (name, dtype) = (tensor.name.clone(), tensor.dtype);
            Ok(mapped(tensor, name, dtype, out, move |bytes| {
                let row = bytes.len() / rows.max(1);
                let mut part_bytes = aligned(bytes.len() / 3, dtype.size());
                // Blocks of rows: each head's queries, keys and values.
                let block = rows / 3 / heads * row;
                if block > 0 {
                    let blocks = bytes.chunks_exact(block).skip(part).step_by(3);
                    for (to, from) in part_bytes.chunks_exact_mut(block).zip(blocks) {
                        to.copy_from_slice(from);
                    }
                }
                part_bytes
            }))
        }
    }
}

/// Queries, keys and values as one tensor, `None` if they don't go together.
fn fuse(parts: [PackTensor; 3], heads: usize) -> Option<PackTensor> {
    let [q, ..] = &parts;
    let shape = q.shape.to_vec();
    let dtype = q.dtype;
    let alike = parts
        .iter()
        .all(|part| part.shape == q.shape && part.dtype == dtype);
    let fused_shape = match shape.as_slice() {
        [rows] => vec![3 * rows],
        [rows, columns] => vec![3 * rows, *columns, 1],
        _ => return None,
    };
    if !alike || heads == 0 || !shape[0].is_multiple_of(heads) {
        return None;
    }
    let (name, len) = (q.name.clone(), 3 * q.byte_len());
    let provider = move || {
        let mut fused = aligned(len, dtype.size());
        let block = len / 3 / heads;
        for (part, tensor) in parts.iter().enumerate() {
            let bytes = tensor.to_bytes()?;
            if block > 0 {
                let places = fused.chunks_exact_mut(block).skip(part).step_by(3);
                for (to, from) in places.zip(bytes.chunks_exact(block)) {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok::<_, PackError>(fused)
    };
    Some(PackTensor::deferred(
        name,
        dtype,
        fused_shape,
        None,
        len,
        provider,
    ))
}

fn reshaped(tensor: PackTensor, shape: Vec<usize>) -> PackTensor {
    let (name, dtype, to) = (
        tensor.name.clone(),
        tensor.dtype,
        Shape::from(shape.clone()),
    );
    bridge::map_data(tensor, name, dtype, to, move |data| {
        TensorData::from_bytes(data.into_bytes(), shape.clone(), dtype)
    })
}

fn mapped(
    tensor: PackTensor,
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    f: impl Fn(&[u8]) -> burn_store::burn_pack::Bytes + Send + Sync + 'static,
) -> PackTensor {
    let to = Shape::from(shape.clone());
    bridge::map_data(tensor, name, dtype, to, move |data| {
        TensorData::from_bytes(f(data.as_bytes()), shape.clone(), dtype)
    })
}
