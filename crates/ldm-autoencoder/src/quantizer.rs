use burn::{
    module::Initializer,
    nn::{Embedding, EmbeddingConfig},
    prelude::*,
    tensor::IndexingUpdateOp,
};
use ldm_nn::watch;

/// Distances that are in memory at once: 2 MiB of f32, which stay in a CPU's cache.
const DISTANCES: usize = 1 << 19;

/// A codebook, under diffusers' `VectorQuantizer` names.
#[derive(Module, Debug)]
pub struct VectorQuantizer {
    /// The codes, `[K, c]`.
    pub embedding: Embedding,
}

/// Latents replaced by their nearest codes.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The codes, `[N, c, h, w]`.
    pub latents: Tensor<4>,
    /// Their numbers, `[N, h, w]`.
    pub indices: Tensor<3, Int>,
}

impl VectorQuantizer {
    /// `count` codes of `dim` numbers, uniform in `[-1/count, 1/count]`.
    pub(crate) fn new(count: usize, dim: usize, device: &Device) -> Self {
        let bound = 1.0 / count as f64;
        let initializer = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Self {
            embedding: EmbeddingConfig::new(count, dim)
                .with_initializer(initializer)
                .init(device),
        }
    }

    /// The code nearest to each pixel of `[N, c, h, w]`, by squared Euclidean distance; the first of those equally near.
    pub fn forward(&self, latents: Tensor<4>) -> Quantized {
        let [n, c, h, w] = latents.dims();
        let codes = self.embedding.weight.val();
        let pixels = latents.permute([0, 2, 3, 1]).reshape([n * h * w, c]);
        // The choice has no gradient; a graph would keep every distance in memory.
        let indices = nearest(pixels.detach(), codes.clone().detach());
        let latents = watch::parameter(self.embedding.weight.id, codes.select(0, indices.clone()))
            .reshape([n, h, w, c])
            .permute([0, 3, 1, 2]);
        Quantized {
            latents,
            indices: indices.reshape([n, h, w]),
        }
    }

    /// How often each code is among `indices`, `[N, h, w]`: `[K]`.
    pub fn hits(&self, indices: Tensor<3, Int>) -> Tensor<1> {
        let [codes, _] = self.embedding.weight.dims();
        let indices = indices.flatten::<1>(0, 2);
        let device = indices.device();
        let hits = Tensor::<1>::ones(indices.dims(), &device);
        Tensor::<1>::zeros([codes], &device).select_assign(0, indices, hits, IndexingUpdateOp::Add)
    }
}

impl Quantized {
    /// What pulls `latents`, of which these are the codes, and codes together: `mean (z - sg(q))^2`, the commitment, which moves the
    /// encoder, and `mean (sg(z) - q)^2`, which moves the codes, with `sg` for a stopped gradient (van den Oord et al. 2017, equation
    /// 3). Both are `[1]`.
    pub fn distances(&self, latents: Tensor<4>) -> [Tensor<1>; 2] {
        let codes = self.latents.clone();
        let commitment = (latents.clone() - codes.clone().detach()).square().mean();
        let codebook = (latents.detach() - codes).square().mean();
        [commitment, codebook]
    }
}

/// For each of the points `[P, c]` the number of the nearest code of `[K, c]`.
///
/// The differences are squared one coordinate after the other. The usual expansion `|z|^2 - 2 z.e + |e|^2` needs one
/// product of matrices, but cancels the digits that tell close codes apart.
fn nearest(points: Tensor<2>, codes: Tensor<2>) -> Tensor<1, Int> {
    let [count, dim] = codes.dims();
    let codes = codes.transpose();
    let squares = |points: &Tensor<2>, axis| {
        (points.clone().narrow(1, axis, 1) - codes.clone().narrow(0, axis, 1)).square()
    };
    let indices = points
        .split((DISTANCES / count).max(1), 0)
        .into_iter()
        .map(|points| {
            let first = squares(&points, 0);
            let distances = (1..dim).fold(first, |sum, axis| sum + squares(&points, axis));
            distances.argmin(1).squeeze_dim(1)
        })
        .collect();
    Tensor::cat(indices, 0)
}
