use std::cell::{Cell, RefCell};

use burn::prelude::*;

use super::{assert_close, tiny, uniform, values};
use crate::{VqModelConfig, tiling};

/// Repeats every pixel in a square: a decoder that sees one pixel at a time.
fn enlarge(latents: Tensor<4>, factor: usize) -> Tensor<4> {
    let [n, c, h, w] = latents.dims();
    latents
        .reshape([n, c, h, 1, w, 1])
        .expand([n, c, h, factor, w, factor])
        .reshape([n, c, factor * h, factor * w])
}

#[test]
fn one_tile_is_the_whole_picture() {
    let device = Device::flex();
    let latents = uniform([1, 4, 6, 5], 1.0, 1);
    let kl = tiny(&[4, 8]).init(&device);
    assert_close(
        kl.decode_tiled(latents.clone(), 6),
        kl.decode(latents.clone()),
        0.0,
    );
    let vq = VqModelConfig {
        norm_num_groups: 4,
        ..VqModelConfig::new(vec![4, 8], 4, 16, 0)
    };
    let vq = vq.init(&device);
    assert_close(vq.decode_tiled(latents.clone(), 6), vq.decode(latents), 0.0);
}

#[test]
fn a_decoder_without_context_leaves_no_seams_at_any_size() {
    for [height, width] in [[8, 8], [9, 7], [3, 20], [17, 13], [1, 9]] {
        let latents = uniform([2, 3, height, width], 1.0, 2);
        for tile in 2..=10 {
            for factor in [1, 2, 4] {
                let found = tiling::decode(latents.clone(), factor, tile, |x| enlarge(x, factor));
                assert_close(found, enlarge(latents.clone(), factor), 1e-6);
            }
        }
    }
}

#[test]
fn no_call_sees_more_than_a_tile() {
    let largest = Cell::new(0);
    let latents = uniform([1, 2, 40, 23], 1.0, 3);
    let found = tiling::decode(latents, 2, 8, |tile| {
        let [_, _, h, w] = tile.dims();
        largest.set(largest.get().max(h).max(w));
        enlarge(tile, 2)
    });
    assert_eq!(found.dims(), [1, 2, 80, 46]);
    assert_eq!(largest.get(), 8);
}

/// Each tile is decoded to another grey; the steps between neighbouring pixels are those of a ramp over the overlap.
#[test]
fn tiles_go_over_into_each_other() {
    for shape in [[1, 1, 4, 22], [1, 1, 22, 4]] {
        let greys = RefCell::new(0.0f32);
        let found = tiling::decode(uniform(shape, 1.0, 4), 2, 8, |tile| {
            let grey = greys.replace_with(|grey| *grey + 1.0);
            enlarge(tile, 2).full_like(grey)
        });
        let [_, _, _, width] = found.dims();
        let found = values(found);
        let line: Vec<f32> = match shape[3] > shape[2] {
            true => found[..width].to_vec(),
            false => found.iter().step_by(width).copied().collect(),
        };
        let steps: Vec<f32> = line.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // 2 latent pixels, 4 pixels overlap.
        assert!(
            steps.iter().all(|step| (0.0..=0.2501).contains(step)),
            "{line:?}"
        );
        assert_eq!((line[0], line[43]), (0.0, 3.0));
    }
}
