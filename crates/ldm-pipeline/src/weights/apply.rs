//! Putting tensors into a module: their layout, their type, and what the module expects.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Element, Shape, Tensor, TensorData, bf16, f16};
use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{
    ApplyError, BurnToPyTorchAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot,
    PyTorchToBurnAdapter, bridge,
};
use rayon::prelude::*;

use super::Differences;

/// Rows and columns of the pieces in which a matrix is transposed: two of them stay in the first-level cache.
const TILE: usize = 64;
/// Elements that a thread converts at a time.
const CHUNK: usize = 1 << 16;

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
    let adapter = adapter.clone().chain(Cast { dtype });
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

/// From PyTorch's names and layouts to burn's, as [`PyTorchToBurnAdapter`], with a transposition that large matrices can
/// afford.
#[derive(Clone)]
pub(super) struct FromPyTorch;

impl ModuleAdapter for FromPyTorch {
    fn adapt(&self, tensor: PackTensor, context: ModuleContext<'_>) -> PackTensor {
        let transposed = PyTorchToBurnAdapter.adapt(tensor.clone(), context);
        let is_transpose = tensor.shape.len() == 2
            && transposed.name == tensor.name
            && context.module_type() == Some("Struct:Linear")
            && (tensor.name == "weight" || tensor.name.ends_with(".weight"));
        let transpose = match tensor.dtype {
            DType::F32 => transpose::<f32>,
            DType::F16 => transpose::<f16>,
            DType::BF16 => transpose::<bf16>,
            _ => return transposed,
        };
        if !is_transpose {
            return transposed;
        }
        let (name, dtype) = (tensor.name.clone(), tensor.dtype);
        bridge::map_data(tensor, name, dtype, transposed.shape, transpose)
    }

    fn get_alternative_param_name(&self, name: &str, container: &str) -> Option<String> {
        PyTorchToBurnAdapter.get_alternative_param_name(name, container)
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(Self)
    }
}

/// `[R, C]` to `[C, R]`.
fn transpose<E: Element + Default>(data: TensorData) -> TensorData {
    let (rows, columns) = (data.shape()[0], data.shape()[1]);
    let from = data.as_slice::<E>().expect("data is of its own type");
    let mut to = vec![E::default(); from.len()];
    if !from.is_empty() {
        to.par_chunks_mut(TILE * rows)
            .enumerate()
            .for_each(|(block, to)| {
                let first = block * TILE;
                for top in (0..rows).step_by(TILE) {
                    let bottom = rows.min(top + TILE);
                    for (offset, to) in to.chunks_exact_mut(rows).enumerate() {
                        for row in top..bottom {
                            to[row] = from[row * columns + first + offset];
                        }
                    }
                }
            });
    }
    TensorData::new(to, [columns, rows])
}

/// Floats of any type to one.
#[derive(Clone)]
struct Cast {
    dtype: DType,
}

impl ModuleAdapter for Cast {
    fn adapt(&self, tensor: PackTensor, _context: ModuleContext<'_>) -> PackTensor {
        let target = self.dtype;
        if !tensor.dtype.is_float() || tensor.dtype == target {
            return tensor;
        }
        let widen = match (tensor.dtype, target) {
            (DType::F16, DType::F32) => widen::<f16>,
            (DType::BF16, DType::F32) => widen::<bf16>,
            _ => |data: TensorData, target| data.convert_dtype(target),
        };
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        bridge::map_data(tensor, name, target, shape, move |data| widen(data, target))
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

/// Half precision to f32.
fn widen<E: Element + Into<f32>>(data: TensorData, _f32: DType) -> TensorData {
    let from = data.as_slice::<E>().expect("data is of its own type");
    let mut to = vec![0.0f32; from.len()];
    to.par_chunks_mut(CHUNK)
        .zip(from.par_chunks(CHUNK))
        .for_each(|(to, from)| {
            for (to, from) in to.iter_mut().zip(from) {
                *to = (*from).into();
            }
        });
    TensorData::new(to, data.shape().clone())
}

pub(super) fn unfit(name: &str, found: &Shape, expected: &Shape) -> String {
    format!(
        "`{name}` has shape {:?}, expected {:?}",
        found.to_vec(),
        expected.to_vec()
    )
}

/// Name and shape, as in a file, of every tensor of `module`, without initialising any.
pub(super) fn expected_tensors<M: Module>(module: &M) -> BTreeMap<String, Shape> {
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
