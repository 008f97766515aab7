//! Decoding of large pictures tile by tile.

use burn::prelude::*;

/// `decode`s latents `[N, c, h, w]` to `[N, C, f h, f w]` in tiles of `tile` latent pixels a side, one after the other.
///
/// Every three quarters of a tile the next one begins. It is blended with the last rows of the tile above it, then with the
/// last columns of the tile on its left, with weights that grow linearly from 0, as in diffusers' `tiled_decode`.
///
/// # Panics
/// If `tile` is below 2.
pub(crate) fn decode(
    latents: Tensor<4>,
    factor: usize,
    tile: usize,
    decode: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    assert!(tile >= 2, "a tile of one latent pixel can't overlap");
    let [_, _, height, width] = latents.dims();
    if height <= tile && width <= tile {
        return decode(latents);
    }
    let stride = tile * 3 / 4;
    let (kept, overlap) = (stride * factor, (tile - stride) * factor);

    let mut rows = Vec::new();
    // The last rows of the tiles above.
    let mut above: Vec<Tensor<4>> = Vec::new();
    for top in (0..height).step_by(stride) {
        let row_latents = latents.clone().narrow(2, top, tile.min(height - top));
        let mut row = Vec::new();
        let mut below = Vec::new();
        // The last columns of the tile on the left.
        let mut left: Option<Tensor<4>> = None;
        for (column, start) in (0..width).step_by(stride).enumerate() {
            let latents = row_latents
                .clone()
                .narrow(3, start, tile.min(width - start));
            let mut image = decode(latents);
            if let Some(above) = above.get(column) {
                image = blend(above.clone(), image, 2);
            }
            if let Some(left) = left {
                image = blend(left, image, 3);
            }
            below.push(last(&image, 2, overlap));
            left = Some(last(&image, 3, overlap));
            row.push(first(first(image, 2, kept), 3, kept));
        }
        above = below;
        rows.push(Tensor::cat(row, 3));
    }
    Tensor::cat(rows, 2)
}

/// Goes over from the end of `a` to the start of `b` along `axis`, within the shorter of both.
fn blend(a: Tensor<4>, b: Tensor<4>, axis: usize) -> Tensor<4> {
    let length = b.dims()[axis];
    let extent = a.dims()[axis].min(length);
    let mut shape = [1; 4];
    shape[axis] = extent;
    let weight = Tensor::<1, Int>::arange(0..extent as i64, &b.device())
        .float()
        .div_scalar(extent as f64)
        .reshape(shape);
    let start = b.clone().narrow(axis, 0, extent);
    let a = last(&a, axis, extent);
    let blended = a.clone() + (start - a) * weight;
    if extent == length {
        return blended;
    }
    Tensor::cat(vec![blended, b.narrow(axis, extent, length - extent)], axis)
}

/// The first `count` rows or columns, or all if there are fewer.
fn first(x: Tensor<4>, axis: usize, count: usize) -> Tensor<4> {
    let count = count.min(x.dims()[axis]);
    x.narrow(axis, 0, count)
}

/// The last `count` rows or columns, or all if there are fewer.
fn last(x: &Tensor<4>, axis: usize, count: usize) -> Tensor<4> {
    let length = x.dims()[axis];
    let count = count.min(length);
    x.clone().narrow(axis, length - count, count)
}
