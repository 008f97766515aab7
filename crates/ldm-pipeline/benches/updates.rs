//! Times what a training step does to all parameters: the norm of the gradients, AdamW and the moving average, beside the machine's limits.
//!
//! `cargo bench -p ldm-pipeline --bench updates`, with the arguments of `ldm-nn`'s `ops`. AdamW is compared with burn's.

#[path = "../../ldm-nn/benches/roofline/mod.rs"]
mod roofline;

use burn::{
    Tensor,
    module::{Module, ModuleVisitor, Param},
    optim::{AdamWConfig, GradientsParams},
    tensor::Device,
};
use ldm_pipeline::{
    autoencoder::AutoencoderKlConfig,
    diffusion::UNetConfig,
    ema::Ema,
    info::count,
    optim::{AdamConfig, Gradients},
};

use roofline::{Cost, Table, timed, timed_after};

fn main() {
    let table = Table::from_arguments();
    let device = Device::flex().autodiff();
    updates(&table, "celebahq_unet", || {
        UNetConfig::celebahq().init(&device)
    });
    updates(&table, "kl_f4", || {
        AutoencoderKlConfig::kl_f4().init(&device)
    });
}

fn updates<M: Module>(table: &Table, model: &str, init: impl Fn() -> M) {
    let names = ["gradient_norm", "adamw", "ema"].map(|name| format!("{name} {model}"));
    if !names.iter().any(|name| table.has(name)) {
        return;
    }
    let [norm, adamw, average] = names;
    let module = init();
    let parameters = count(&module);
    let gradients = || gradients(&module);

    let ours = timed_after(
        || Gradients::from(gradients()),
        |mut gradients| drop(gradients.norms(&module, None)),
    );
    table.line(&norm, Cost::new(0, parameters), ours, None);

    let (mut optimizer, mut updated) = (AdamConfig::adam_w().init(), Some(module.clone()));
    let ours = timed_after(gradients, |gradients| {
        let before = updated.take().expect("every step puts it back");
        updated = Some(optimizer.step(1e-4, before, gradients.into()));
    });
    let (mut optimizer, mut updated) = (AdamWConfig::new().init(), Some(module.clone()));
    let theirs = timed_after(gradients, |gradients| {
        let before = updated.take().expect("every step puts it back");
        updated = Some(optimizer.step(1e-4, before, gradients));
    });
    // Parameters, gradients and two moments are read, all but the gradients written.
    table.line(&adamw, Cost::new(0, 7 * parameters), ours, Some(theirs));

    let mut ema = Ema::new(&module, 0.9999);
    let ours = timed(|| ema.update(&module));
    table.line(&average, Cost::new(0, 3 * parameters), ours, None);
}

/// Gradients of 0.01 for all parameters of `module`.
fn gradients<M: Module>(module: &M) -> GradientsParams {
    struct Visitor(GradientsParams);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = Tensor::<D>::full(param.shape(), 0.01, &Device::flex());
            self.0.register(param.id, gradient);
        }
    }
    let mut visitor = Visitor(GradientsParams::new());
    module.visit(&mut visitor);
    visitor.0
}
