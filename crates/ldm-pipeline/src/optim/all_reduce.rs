//! Gradients summed over processes.

use burn::Tensor;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use burn::tensor::distributed::{ReduceOperation, all_reduce};

use crate::parallel::Workers;

/// Values after which a bucket is sent: 4 MiB, enough that the number of messages doesn't matter, and little beside a model.
const BUCKET: usize = 1 << 20;

/// Replaces the gradients of `module` by their sums over all processes, in the order of the module's parameters: where they are, if the
/// devices can, otherwise through the host's memory in buckets. A parameter without a gradient counts as zero, unless none has one.
pub(super) fn sum_over<M: Module>(workers: &Workers, gradients: &mut GradientsParams, module: &M) {
    let mut presence = Presence {
        gradients,
        flags: Vec::new(),
    };
    module.visit(&mut presence);
    let mut present = presence.flags;
    // Also a meeting of all just before the reductions on devices, which can't be called off once one has begun.
    workers.sum(&mut present);
    let mut reduction = Reduction {
        workers,
        gradients,
        present: present.into_iter(),
        bucket: Vec::new(),
        waiting: Vec::new(),
    };
    module.visit(&mut reduction);
    reduction.flush();
}

/// Which parameters have a gradient here: 1, otherwise 0.
struct Presence<'a> {
    gradients: &'a GradientsParams,
    flags: Vec<f32>,
}

impl ModuleVisitor for Presence<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let present = self.gradients.get::<D>(param.id).is_some();
        self.flags.push(f32::from(u8::from(present)));
    }
}

/// Puts the sum of a gradient, the values that it is given, back in its place.
type PutBack = Box<dyn FnOnce(&[f32], &mut GradientsParams)>;

struct Reduction<'a> {
    workers: &'a Workers,
    gradients: &'a mut GradientsParams,
    /// In how many processes each parameter has a gradient.
    present: std::vec::IntoIter<f32>,
    bucket: Vec<f32>,
    /// The gradients in the bucket: number of values, and where they go.
    waiting: Vec<(usize, PutBack)>,
}

impl Reduction<'_> {
    fn flush(&mut self) {
        self.workers.sum(&mut self.bucket);
        let mut values = self.bucket.as_slice();
        for (count, put_back) in self.waiting.drain(..) {
            let (own, rest) = values.split_at(count);
            put_back(own, self.gradients);
            values = rest;
        }
        self.bucket.clear();
    }

    fn take<const D: usize>(&mut self, id: ParamId, param: &Tensor<D>) -> Tensor<D> {
        self.gradients
            .remove::<D>(id)
            .unwrap_or_else(|| param.clone().inner().zeros_like())
    }
}

impl ModuleVisitor for Reduction<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.present.next() == Some(0.0) {
            return;
        }
        let id = param.id;
        let gradient = self.take(id, &param.val());
        if let Some(devices) = self.workers.devices() {
            // If it fails, so does whoever reads the sum, as the norm of the gradients does.
            let sum = all_reduce(gradient, ReduceOperation::Sum, devices.to_vec());
            return self.gradients.register(id, sum.resolve());
        }
        let (device, dtype, shape) = (gradient.device(), gradient.dtype(), gradient.shape());
        let data = gradient.into_data().convert::<f32>();
        let values = data.as_slice::<f32>().expect("converted to f32");
        self.bucket.extend_from_slice(values);
        let put_back = move |values: &[f32], gradients: &mut GradientsParams| {
            let data = TensorData::new(values.to_vec(), shape);
            gradients.register(id, Tensor::<D>::from_data(data, (&device, dtype)));
        };
        self.waiting.push((values.len(), Box::new(put_back)));
        if self.bucket.len() >= BUCKET {
            self.flush();
        }
    }
}
