//! From what a pickle describes to the tensors of a model.

use std::sync::Arc;

use burn::tensor::{BoolStore, DType};
use burn_store::burn_pack::{Bytes, Error as PackError, Tensor as PackTensor};

use super::super::WeightsError;
use super::super::source::{Budget, Source, aligned};
use super::super::tensors::Tensors;
use super::object::{Object, Pickled, Storage, Value, View};

/// Memory that a tensor takes beside its name, generously.
const TENSOR_COST: usize = 768;
/// Bytes that a view may repeat its data to, in a file that is smaller.
const MAX_REPEATED: u64 = 1 << 16;
/// Longest string that is kept beside the tensors.
const MAX_TEXT: usize = 1 << 12;
/// Where PyTorch users put the tensors of a model.
const STATE_DICT: &str = "state_dict";
const OTHER_NAMES: [&str; 3] = ["model", "module", "params"];

/// Where the data of a storage lies in the file, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) begin: u64,
    pub(super) len: u64,
}

/// The tensors of a checkpoint: of its `state_dict`, or of the dictionary that it is, or of its `model`. `place` finds
/// storages.
pub(super) fn tensors(
    source: &Arc<Source>,
    pickled: &Pickled,
    budget: &mut Budget,
    place: impl Fn(&Storage) -> Result<Place, WeightsError>,
) -> Result<Tensors, WeightsError> {
    let unsupported = |format| WeightsError::Unsupported {
        path: source.path().to_path_buf(),
        format,
        help: "load it in PyTorch and save the model's state_dict()",
    };
    let Some(root) = pickled.dict(pickled.root) else {
        return Err(unsupported(
            "a PyTorch file of an object, not of a dictionary of tensors",
        ));
    };
    let dict = model_dict(pickled, root)
        .ok_or_else(|| unsupported("a PyTorch file without a dictionary of tensors"))?;

    let mut set = Tensors::new(source.path());
    for (key, value) in dict {
        let Some(name) = pickled.text(*key) else {
            continue;
        };
        match pickled.object(*value) {
            Some(Object::Tensor(view)) => {
                budget.charge(source, 2 * name.len() + TENSOR_COST)?;
                let Some(dtype) = view.storage.element.dtype else {
                    let what = "of a type that is not read".to_owned();
                    set.refused.insert(name.to_owned(), what);
                    continue;
                };
                let place = place(&view.storage)?;
                let tensor = tensor(source, name, view, dtype, place)?;
                set.add(name.to_owned(), tensor);
            }
            Some(Object::Opaque(_)) => {
                budget.charge(source, 2 * name.len() + TENSOR_COST)?;
                let what = format!("{}, not a tensor", pickled.describe(*value));
                set.refused.insert(name.to_owned(), what);
            }
            _ => {}
        }
    }
    for (key, value) in root {
        let Some(key) = pickled.text(*key) else {
            continue;
        };
        let value = match *value {
            Value::Int(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            value => match pickled.text(value) {
                Some(text) if text.len() <= MAX_TEXT => text.to_owned(),
                _ => continue,
            },
        };
        budget.charge(source, key.len() + value.len() + 128)?;
        set.metadata.insert(key.to_owned(), value);
    }
    Ok(set)
}

/// The dictionary with the tensors of the model.
fn model_dict<'a>(
    pickled: &'a Pickled,
    root: &'a [(Value, Value)],
) -> Option<&'a [(Value, Value)]> {
    let has_tensors = |dict: &[(Value, Value)]| {
        dict.iter()
            .any(|(_, value)| matches!(pickled.object(*value), Some(Object::Tensor(_))))
    };
    let inner = |key| pickled.dict(pickled.get(root, key)?);
    if let Some(dict) = inner(STATE_DICT) {
        return Some(dict);
    }
    if has_tensors(root) {
        return Some(root);
    }
    OTHER_NAMES
        .into_iter()
        .filter_map(inner)
        .find(|dict| has_tensors(dict))
}

/// The tensor that shows `view` of the data at `place`.
fn tensor(
    source: &Arc<Source>,
    name: &str,
    view: &View,
    dtype: DType,
    place: Place,
) -> Result<PackTensor, WeightsError> {
    let size = dtype.size();
    let len = byte_len(source, view, size, place)
        .ok_or_else(|| source.invalid(format!("tensor `{name}` does not fit its data")))?;
    let begin = place.begin + view.offset * size as u64;
    let (file, shape, strides) = (Arc::clone(source), view.shape.clone(), view.strides.clone());
    let provider = move || {
        let read = read_view(&file, begin, len, size, &shape, &strides);
        let mut bytes = read.map_err(|error| PackError::IoError(error.to_string()))?;
        if dtype == DType::Bool(BoolStore::Native) {
            bytes
                .iter_mut()
                .for_each(|byte| *byte = u8::from(*byte != 0));
        }
        Ok(bytes)
    };
    Ok(PackTensor::deferred(
        name.to_owned(),
        dtype,
        view.shape.clone(),
        None,
        len,
        provider,
    ))
}

/// The length of `view` as a tensor, `None` unless it lies in its storage, that in its place, and the length within what a
/// file of this size may ask for (a stride of 0 repeats data).
fn byte_len(source: &Source, view: &View, size: usize, place: Place) -> Option<usize> {
    let elements = view
        .shape
        .iter()
        .try_fold(1usize, |product, side| product.checked_mul(*side))?;
    let len = elements.checked_mul(size)?;
    let needed = if elements == 0 {
        view.offset
    } else {
        view.shape
            .iter()
            .zip(&view.strides)
            .try_fold(view.offset, |last, (side, stride)| {
                last.checked_add((*side as u64 - 1).checked_mul(*stride as u64)?)
            })?
            .checked_add(1)?
    };
    let fits = needed <= view.storage.len
        && view.storage.len.checked_mul(size as u64)? <= place.len
        && len as u64 <= source.len().max(MAX_REPEATED);
    fits.then_some(len)
}

/// Reads a view whose first element is at `begin`: as it is, or the range that covers it, of which elements are picked.
fn read_view(
    source: &Source,
    begin: u64,
    len: usize,
    size: usize,
    shape: &[usize],
    strides: &[usize],
) -> Result<Bytes, WeightsError> {
    if len == 0 {
        return Ok(aligned(0, size));
    }
    // Axes of one element have no stride that matters.
    let axes: Vec<(usize, usize)> = shape
        .iter()
        .zip(strides)
        .filter(|(side, _)| **side > 1)
        .map(|(side, stride)| (*side, *stride))
        .collect();
    let mut dense = 1;
    let contiguous = axes.iter().rev().all(|(side, stride)| {
        let fits = *stride == dense;
        dense *= side;
        fits
    });
    if contiguous {
        return source.bytes(begin, len, size);
    }
    let last: usize = axes.iter().map(|(side, stride)| (side - 1) * stride).sum();
    let covering = source.bytes(begin, (last + 1) * size, size)?;
    let mut picked = aligned(len, size);
    let mut index = vec![0; axes.len()];
    let mut element = 0;
    for to in picked.chunks_exact_mut(size) {
        to.copy_from_slice(&covering[element * size..][..size]);
        for (position, (side, stride)) in index.iter_mut().zip(&axes).rev() {
            *position += 1;
            element += stride;
            if *position < *side {
                break;
            }
            element -= side * stride;
            *position = 0;
        }
    }
    Ok(picked)
}
