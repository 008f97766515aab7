//! Convolution kernels taken to the frequencies, a panel of outputs at a time.

use std::ops::Range;

use super::{
    FREQUENCIES, TAPS, spread,
    transforms::{Lane, both_axes, filter_transform, store},
};
use crate::ops::{
    simd::{LANES, multiversion},
    transpose::transpose_lanes,
};

/// Inputs whose kernels are laid out together: with their taps, whole squares of [`LANES`].
const GROUP: usize = LANES;

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

    /// Transforms the kernels from the inputs of a range to the [`LANES`] outputs of a panel: `[FREQUENCIES, inputs, LANES]`, the
    /// frequencies at `stride`.
    pub(super) fn transform(
        &self,
        panel: usize,
        range: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let first = panel * LANES;
        let lanes = LANES.min(self.outputs - first);
        let (lane_stride, input_stride) = if self.adjoint {
            (TAPS, TAPS * self.outputs)
        } else {
            (TAPS * self.inputs, TAPS)
        };
        for start in range.clone().step_by(GROUP) {
            let count = GROUP.min(range.end - start);
            let mut taps = [0.0; GROUP * TAPS * LANES];
            let weight = &self.weight[first * lane_stride + start * input_stride..];
            if self.adjoint {
                for (input, taps) in taps.chunks_exact_mut(TAPS * LANES).take(count).enumerate() {
                    let weight = &weight[input * input_stride..];
                    transpose_lanes(weight, lane_stride, taps, LANES, [lanes, TAPS]);
                }
            } else {
                transpose_lanes(weight, lane_stride, &mut taps, LANES, [lanes, count * TAPS]);
            }
            let out = &mut out[(start - range.start) * LANES..];
            transform_taps(&taps[..count * TAPS * LANES], self.adjoint, out, stride);
        }
    }
}

multiversion! {
    /// Takes kernels, `[inputs, TAPS, LANES]`, to the frequencies.
    fn transform_taps(taps: &[f32], turned: bool, out: &mut [f32], stride: usize) {
        for (input, taps) in taps.chunks_exact(TAPS * LANES).enumerate() {
            let mut kernel: [[Lane; 3]; 3] = [[[0.0; LANES]; 3]; 3];
            for (tap, (lane, from)) in kernel.as_flattened_mut().iter_mut().zip(taps.chunks_exact(LANES)).enumerate() {
                let from = if turned { &taps[(TAPS - 1 - tap) * LANES..][..LANES] } else { from };
                lane.copy_from_slice(from);
            }
            store(&both_axes(&kernel, filter_transform), &mut out[input * LANES..], stride);
        }
    }
}
