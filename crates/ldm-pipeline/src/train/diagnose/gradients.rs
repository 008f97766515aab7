//! The parameter whose gradient first was not finite.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::Tensor,
};
use ldm_nn::watch::{Entry, PathStack, Paths};

use super::search::{all_bad, not_finite, owner};

/// Among the modules of `module`, itself called `name`, whose parameters have gradients that are not finite, the one applied last in the
/// forward pass that `trace` is of: the backward pass met it first.
pub(super) fn first_damaged_gradient<M: Module>(
    name: &str,
    module: &M,
    gradients: &GradientsParams,
    trace: &[Entry],
    paths: &Paths,
) -> Option<String> {
    let mut flags = GradientFlags {
        gradients,
        stack: PathStack::default(),
        owners: Vec::new(),
        flags: Vec::new(),
    };
    if !name.is_empty() {
        flags.stack.enter(name, "");
    }
    module.visit(&mut flags);
    let GradientFlags {
        owners: mut damaged,
        flags,
        ..
    } = flags;
    let bad = all_bad(flags);
    let mut index = 0;
    damaged.retain(|_| {
        index += 1;
        bad.contains(&(index - 1))
    });

    // A layer that a backward pass computes again has later entries.
    let mut order: Vec<String> = Vec::new();
    for entry in trace.iter().filter(|entry| entry.site.above == 0) {
        if let Some(path) = paths.module(entry.site)
            && !order.contains(&path)
        {
            order.push(path);
        }
    }
    let applied = |path: &String| order.iter().position(|known| known == path);
    damaged.into_iter().max_by_key(applied)
}

struct GradientFlags<'a> {
    gradients: &'a GradientsParams,
    stack: PathStack,
    /// The module of each parameter that has a gradient.
    owners: Vec<String>,
    flags: Vec<Tensor<1>>,
}

impl ModuleVisitor for GradientFlags<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.owners.push(owner(self.stack.names()));
            self.flags.push(not_finite(gradient));
        }
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }
}
