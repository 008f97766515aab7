//! Convolution kernels taken to the frequencies, a panel of outputs at a time.

use super::{
    FREQUENCIES, spread,
    transforms::{both_axes, filter_transform, store},
};
use crate::ops::simd::{LANES, multiversion};

/// The kernels of a convolution from `inputs` to `outputs` channels.
pub(in crate::ops) struct Kernels<'a> {
    weight: &'a [f32],
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Whether it takes the gradient of the outputs of `weight` to that of its inputs: transposed and turned around.
    adjoint: bool,
}

impl<'a> Kernels<'a> {
    /// Of `weight`, `[C_out, C_in, 3, 3]`.
    pub(in crate::ops) fn new(weight: &'a [f32], inputs: usize, outputs: usize) -> Self {
        Self {
            weight,
            inputs,
            outputs,
            adjoint: false,
        }
    }

    /// Of the convolution that propagates a gradient back through that of `weight`, `[C_out, C_in, 3, 3]`.
    pub(in crate::ops) fn adjoint(weight: &'a [f32], inputs: usize, outputs: usize) -> Self {
        Self {
            weight,
            inputs: outputs,
            outputs: inputs,
            adjoint: true,
        }
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(super) fn panel_len(&self) -> usize {
        FREQUENCIES * spread(self.inputs * LANES)
    }

    /// Transforms the kernels of [`LANES`] outputs: `[FREQUENCIES, C_in, LANES]`, the frequencies
    /// [`spread`].
    pub(super) fn transform_panel(&self, panel: usize, out: &mut [f32]) {
        let first = panel * LANES;
        let lanes = LANES.min(self.outputs - first);
        let (lane_stride, input_stride) = if self.adjoint {
            (9, 9 * self.outputs)
        } else {
            (9 * self.inputs, 9)
        };
        let inputs = self.inputs;
        transform_kernels(
            inputs,
            &self.weight[first * lane_stride..],
            [lane_stride, input_stride],
            lanes,
            self.adjoint,
            out,
        );
    }
}

multiversion! {
    fn transform_kernels(
        inputs: usize, weight: &[f32], strides: [usize; 2], lanes: usize, turned: bool, out: &mut [f32],
    ) {
        for input in 0..inputs {
            let mut taps = [[[0.0; LANES]; 3]; 3];
            for lane in 0..lanes {
                let start = input * strides[1] + lane * strides[0];
                let kernel: &[f32; 9] = weight[start..].first_chunk().expect("nine taps");
                for (tap, value) in taps.as_flattened_mut().iter_mut().enumerate() {
                    value[lane] = kernel[if turned { 8 - tap } else { tap }];
                }
            }
            store(&both_axes(&taps, filter_transform), &mut out[input * LANES..], spread(inputs * LANES));
        }
    }
}
