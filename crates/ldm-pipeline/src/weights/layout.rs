//! Tensors from CompVis' names and layouts to diffusers', and back.

use burn::tensor::{DType, TensorData};
use burn_store::{
    bridge,
    burn_pack::{Error as PackError, Tensor as PackTensor},
};
use ldm_nn::weights::{KeyPair, Layout};

use super::{Differences, Tensors, WeightsError};

/// The part of a checkpoint below `prefix`, in diffusers' names and layouts. Data are still read when they are asked for.
///
/// # Errors
/// Names every tensor that is missing, or of a shape that its layout doesn't allow.
pub(crate) fn from_compvis(
    checkpoint: &Tensors,
    prefix: &str,
    pairs: &[KeyPair],
) -> Result<Tensors, WeightsError> {
    let mut differences = Differences::default();
    let mut tensors = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let name = format!("{prefix}{}", pair.compvis);
        let Some(stored) = checkpoint.get(&name) else {
            differences.missing.push(name);
            continue;
        };
        match unpack(stored, pair) {
            Ok(tensor) => tensors.push(tensor),
            Err(expected) => differences.unfit.push(format!(
                "`{name}` has shape {:?}, expected {expected}",
                stored.shape.to_vec()
            )),
        }
    }
    // The three parts of a fused projection miss the same tensor.
    differences.missing.dedup();
    if !differences.is_empty() {
        return Err(WeightsError::Mismatch {
            path: checkpoint.origin().into(),
            differences,
        });
    }
    Ok(Tensors::new(checkpoint.origin(), tensors, Vec::new()))
}

/// The inverse of [`from_compvis`]: tensors in diffusers' names, as a checkpoint names and lays them out below `prefix`.
///
/// # Errors
/// Names every tensor that is missing.
pub(crate) fn to_compvis(
    tensors: &Tensors,
    prefix: &str,
    pairs: &[KeyPair],
) -> Result<Tensors, WeightsError> {
    let mut missing = Vec::new();
    let mut packed = Vec::with_capacity(pairs.len());
    let mut fused: Vec<(String, Vec<PackTensor>, usize)> = Vec::new();
    for pair in pairs {
        let Some(tensor) = tensors.get(&pair.diffusers) else {
            missing.push(pair.diffusers.clone());
            continue;
        };
        let name = format!("{prefix}{}", pair.compvis);
        let mut shape = tensor.shape.to_vec();
        match pair.layout {
            Layout::Same => packed.push(reshaped(tensor, name, shape)),
            Layout::Pointwise { axes } => {
                shape.extend(vec![1; axes]);
                packed.push(reshaped(tensor, name, shape));
            }
            Layout::Qkv { part, heads } => match fused.iter_mut().find(|(n, ..)| *n == name) {
                Some((_, parts, _)) => parts.insert(part.min(parts.len()), tensor.clone()),
                None => fused.push((name, vec![tensor.clone()], heads)),
            },
        }
    }
    if !missing.is_empty() {
        return Err(WeightsError::Mismatch {
            path: tensors.origin().into(),
            differences: Differences {
                missing,
                ..Differences::default()
            },
        });
    }
    packed.extend((fused.into_iter()).map(|(name, parts, heads)| fuse(name, parts, heads)));
    Ok(Tensors::new(tensors.origin(), packed, Vec::new()))
}

/// diffusers' tensor of a stored one, or the shape that was expected of that, in words.
fn unpack(stored: &PackTensor, pair: &KeyPair) -> Result<PackTensor, String> {
    let name = pair.diffusers.clone();
    let mut shape = stored.shape.to_vec();
    match pair.layout {
        Layout::Same => Ok(reshaped(stored, name, shape)),
        Layout::Pointwise { axes } => {
            let kept = shape.len().checked_sub(axes).filter(|&kept| kept > 0);
            match kept.filter(|&kept| shape[kept..].iter().all(|&size| size == 1)) {
                Some(kept) => {
                    shape.truncate(kept);
                    Ok(reshaped(stored, name, shape))
                }
                None => Err(format!("a convolution with {axes} axes of 1")),
            }
        }
        Layout::Qkv { part, heads } => {
            let rows = shape.first().copied().unwrap_or(0);
            let heads = heads.max(1);
            if rows == 0 || rows % (3 * heads) != 0 {
                return Err(format!("3 x {heads} equal parts of rows"));
            }
            // A weight is a convolution with one axis of 1, a bias has rows alone.
            if shape.len() == 3 && shape[2] == 1 {
                shape.pop();
            }
            shape[0] = rows / 3;
            let head_rows = rows / 3 / heads;
            Ok(derived(stored, name, shape, move |bytes| {
                let row = bytes.len() / rows;
                let block = head_rows * row;
                (0..heads)
                    .flat_map(|head| {
                        let start = (head * 3 + part) * block;
                        bytes[start..start + block].iter().copied()
                    })
                    .collect()
            }))
        }
    }
}

/// Queries, keys and values in one tensor, each head's three parts together.
fn fuse(name: String, parts: Vec<PackTensor>, heads: usize) -> PackTensor {
    let heads = heads.max(1);
    let mut shape = parts[0].shape.to_vec();
    shape[0] *= parts.len();
    if shape.len() == 2 {
        shape.push(1);
    }
    let dtype = parts[0].dtype;
    let data_shape = shape.clone();
    bridge::deferred(name, dtype, shape.into(), None, move || {
        let parts = (parts.iter())
            .map(PackTensor::to_bytes)
            .collect::<Result<Vec<_>, PackError>>()?;
        let block = parts[0].len() / heads;
        let bytes = (0..heads)
            .flat_map(|head| parts.iter().map(move |part| &part[head * block..(head + 1) * block]))
            .flatten()
            .copied()
            .collect();
        Ok(TensorData::from_bytes_vec(bytes, data_shape.clone(), dtype))
    })
}

fn reshaped(tensor: &PackTensor, name: String, shape: Vec<usize>) -> PackTensor {
    let mut tensor = tensor.clone();
    (tensor.name, tensor.shape) = (name, shape.into());
    tensor
}

fn derived(
    tensor: &PackTensor,
    name: String,
    shape: Vec<usize>,
    change: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> PackTensor {
    let (tensor, dtype): (_, DType) = (tensor.clone(), tensor.dtype);
    let data_shape = shape.clone();
    bridge::deferred(name, dtype, shape.into(), None, move || {
        let bytes = change(&tensor.to_bytes()?);
        Ok(TensorData::from_bytes_vec(bytes, data_shape.clone(), dtype))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(part: usize, heads: usize, kind: &str) -> KeyPair {
        KeyPair {
            diffusers: format!("to_{}.{kind}", ["q", "k", "v"][part]),
            compvis: format!("qkv.{kind}"),
            layout: Layout::Qkv { part, heads },
        }
    }

    #[test]
    fn fused_projections_come_apart_and_together_again() {
        // Two heads of two rows: q, k, v of the first, then of the second.
        let weight = TensorData::new((0..24i32).collect(), [12, 2, 1]);
        let bias = TensorData::new((0..12i32).collect(), [12]);
        let checkpoint = Tensors::from_data(vec![
            ("a.qkv.weight".into(), weight.clone()),
            ("a.qkv.bias".into(), bias.clone()),
        ]);
        for (heads, expected) in [(2, [2, 3, 8, 9]), (1, [4, 5, 6, 7])] {
            let pairs: Vec<KeyPair> = (0..3)
                .flat_map(|part| ["weight", "bias"].map(|kind| pair(part, heads, kind)))
                .collect();
            let parts = from_compvis(&checkpoint, "a.", &pairs).unwrap();
            let keys = parts.read("to_k.bias").unwrap();
            assert_eq!(keys.iter::<i32>().collect::<Vec<_>>(), expected);
            assert_eq!(parts.shapes()["to_v.weight"], [4, 2]);
            let again = to_compvis(&parts, "a.", &pairs).unwrap();
            assert_eq!(again.read("a.qkv.weight").unwrap(), weight);
            assert_eq!(again.read("a.qkv.bias").unwrap(), bias);
        }
    }

    #[test]
    fn what_is_missing_or_misshapen_is_named_as_in_the_file() {
        let checkpoint =
            Tensors::from_data(vec![("a.conv.weight".into(), TensorData::new(vec![0f32; 4], [2, 2]))]);
        let pairs = [
            KeyPair {
                diffusers: "to_out.weight".into(),
                compvis: "conv.weight".into(),
                layout: Layout::Pointwise { axes: 2 },
            },
            KeyPair::same("norm.weight", "norm.weight"),
        ];
        let error = from_compvis(&checkpoint, "a.", &pairs).unwrap_err().to_string();
        assert!(error.contains("`a.conv.weight` has shape [2, 2]"), "{error}");
        assert!(error.contains("a.norm.weight"), "{error}");
    }
}
