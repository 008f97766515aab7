//! Looking for numbers that are not finite in modules, batches and recordings.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use ldm_nn::watch::{Entry, PathStack, Paths};

use super::Culprit;

/// The first module of `module`, itself called `name`, with a parameter that is not finite.
pub(super) fn damaged_weight<M: Module>(name: &str, module: &M) -> Option<String> {
    damaged_parameter(name, module).map(|path| owner(&path))
}

/// The path of the first parameter or running statistic of `module`, itself called `name`, that is not finite.
pub(in crate::train) fn damaged_parameter<M: Module>(
    name: &str,
    module: &M,
) -> Option<Vec<String>> {
    let mut flags = ParameterFlags::default();
    if !name.is_empty() {
        flags.stack.enter(name, "");
    }
    module.visit(&mut flags);
    let bad = first_bad(flags.flags)?;
    Some(flags.paths.swap_remove(bad))
}

/// The module that owns the parameter at `path`.
pub(super) fn owner(path: &[String]) -> String {
    path[..path.len().saturating_sub(1)].join(".")
}

#[derive(Default)]
struct ParameterFlags {
    stack: PathStack,
    paths: Vec<Vec<String>>,
    flags: Vec<Tensor<1>>,
}

impl ModuleVisitor for ParameterFlags {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.paths.push(self.stack.names().to_vec());
        self.flags.push(not_finite(param.val()));
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }
}

/// 1 if any of `x` is not finite, else 0: `[1]`, without gradients.
pub(super) fn not_finite<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.detach().inner().is_finite().bool_not().any().float()
}

pub(super) fn is_finite<const D: usize>(x: &Tensor<D>) -> bool {
    not_finite(x.clone()).into_scalar::<f32>() == 0.0
}

/// The positions of flags that are set, by one transfer.
pub(super) fn all_bad(flags: Vec<Tensor<1>>) -> Vec<usize> {
    if flags.is_empty() {
        return Vec::new();
    }
    let flags = Tensor::cat(flags, 0).into_data();
    (flags.iter::<f32>().enumerate())
        .filter(|(_, flag)| *flag > 0.0)
        .map(|(index, _)| index)
        .collect()
}

fn first_bad(flags: Vec<Tensor<1>>) -> Option<usize> {
    all_bad(flags).first().copied()
}

/// The items of `x`, `[N, C, H, W]`, that are not finite, under the names that `name_of` gives them.
pub(super) fn damaged_items(x: &Tensor<4>, name_of: impl Fn(usize) -> String) -> Vec<String> {
    let items = (0..x.dims()[0]).map(|item| not_finite(x.clone().narrow(0, item, 1)));
    all_bad(items.collect()).into_iter().map(name_of).collect()
}

/// The first module in the order of execution that made something not finite.
pub(super) fn first_module(trace: &[Entry], paths: &Paths) -> Option<Culprit> {
    let entry = trace.iter().find(|entry| !(entry.input && entry.output))?;
    let path = paths.module(entry.site)?;
    Some(match entry.input {
        true => Culprit::Module(path),
        false => Culprit::Input(path),
    })
}
