//! Rows taken to lanes.

use super::simd::{LANES, multiversion};
#[cfg(target_arch = "x86_64")]
use super::{
    avx512,
    simd::{Level, level},
};

/// Columns that are turned round together where there is no register for them.
const BLOCK: usize = 8;

/// `out[p * out_stride + c] = x[c * x_stride + p]` for `rows` rows `c` of `columns` elements `p`, and zeros in the lanes that are left of
/// [`LANES`].
///
/// # Panics
/// If one of them is shorter than that, or there are more rows than lanes.
pub(super) fn transpose_lanes(
    x: &[f32],
    x_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    [rows, columns]: [usize; 2],
) {
    assert!(rows <= LANES);
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * x_stride + columns <= x.len());
    assert!((columns - 1) * out_stride + LANES <= out.len());
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        for p in (0..columns).step_by(LANES) {
            let count = LANES.min(columns - p);
            // SAFETY: both hold as much by the assertions, and the machine has AVX-512.
            unsafe {
                let (x, out) = (x.as_ptr().add(p), out.as_mut_ptr().add(p * out_stride));
                avx512::transpose(x, x_stride, out, out_stride, [rows, count]);
            }
        }
        return;
    }
    by_blocks(x, x_stride, out, out_stride, rows, columns);
}

multiversion! {
    fn by_blocks(x: &[f32], x_stride: usize, out: &mut [f32], out_stride: usize, rows: usize, columns: usize) {
        let whole = columns / BLOCK * BLOCK;
        for p in (0..whole).step_by(BLOCK) {
            let mut block = [[0.0f32; BLOCK]; LANES];
            for (lane, block) in block.iter_mut().enumerate().take(rows) {
                let start = lane * x_stride + p;
                block.copy_from_slice(&x[start..start + BLOCK]);
            }
            for i in 0..BLOCK {
                let start = (p + i) * out_stride;
                for (out, block) in out[start..start + LANES].iter_mut().zip(&block) {
                    *out = block[i];
                }
            }
        }
        for p in whole..columns {
            for (lane, out) in out[p * out_stride..][..LANES].iter_mut().enumerate() {
                *out = if lane < rows { x[lane * x_stride + p] } else { 0.0 };
            }
        }
    }
}
