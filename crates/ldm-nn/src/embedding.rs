use burn::{
    nn::{Linear, LinearConfig},
    prelude::*,
    tensor::activation::silu,
};

use crate::ops::{self, in_dtype};

/// Sinusoidal timestep embedding (Ho et al. 2020; Vaswani et al. 2017, section 3.5) in diffusers' general form.
///
/// The frequencies are `10000^(-i / (dim/2 - freq_shift))`. Latent diffusion uses `[cos | sin]`
/// (`flip_sin_to_cos = true`) and `freq_shift = 0`. An odd `dim` is padded with a zero column.
///
/// # Shapes
/// - `timesteps`: `[N]`, in training steps, fractions allowed
/// - output: `[N, dim]`
pub fn timestep_embedding(
    timesteps: Tensor<1>,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> Tensor<2> {
    let half = dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10000f64.ln()) * i as f64 / (half as f64 - freq_shift)).exp() as f32)
        .collect();
    let device = timesteps.device();
    let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), &device);
    let angles = timesteps.unsqueeze_dim::<2>(1) * frequencies.unsqueeze_dim::<2>(0);
    let (sin, cos) = (angles.clone().sin(), angles.cos());
    let mut parts = if flip_sin_to_cos {
        vec![cos, sin]
    } else {
        vec![sin, cos]
    };
    if dim % 2 == 1 {
        let n = parts[0].dims()[0];
        parts.push(Tensor::zeros([n, 1], &device));
    }
    Tensor::cat(parts, 1)
}

/// Two linear layers with a SiLU between them, from the sinusoidal embedding to the blocks' embedding.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    /// First layer.
    pub linear_1: Linear,
    /// Second layer.
    pub linear_2: Linear,
}

impl TimestepEmbedding {
    /// Initialises the layers on `device`.
    pub fn new(in_channels: usize, time_embed_dim: usize, device: &Device) -> Self {
        Self {
            linear_1: LinearConfig::new(in_channels, time_embed_dim).init(device),
            linear_2: LinearConfig::new(time_embed_dim, time_embed_dim).init(device),
        }
    }

    /// `[N, in_channels]` to `[N, time_embed_dim]`; no activation after the second layer.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = in_dtype(x, self.linear_1.weight.val().dtype());
        ops::linear(&self.linear_2, silu(ops::linear(&self.linear_1, x)))
    }
}
