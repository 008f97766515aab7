//! Blocks whose activations are computed again in the backward pass.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Distribution, Gradients, Tensor},
};
use ldm_nn::{Activations, Attention, AttentionConfig, ResnetBlock2d, ResnetBlock2dConfig};

/// All parameters' gradients in the order of the module, flat; `None` where there is none.
fn gradients(module: &impl Module, found: &Gradients) -> Vec<Option<Vec<f32>>> {
    struct Collect<'a>(&'a Gradients, Vec<Option<Vec<f32>>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0);
            self.1
                .push(gradient.map(|x| x.into_data().try_to_vec().unwrap()));
        }
    }
    let mut collect = Collect(found, Vec::new());
    module.visit(&mut collect);
    collect.1
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn leaf<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().autodiff().require_grad()
}

fn resnet() -> ResnetBlock2d {
    ResnetBlock2dConfig {
        in_channels: 8,
        out_channels: 16,
        temb_channels: Some(12),
        scale_shift: false,
        norm_num_groups: 4,
        norm_eps: 1e-5,
    }
    .init(&Device::flex().autodiff())
}

fn attention() -> Attention {
    AttentionConfig {
        query_dim: 16,
        context_dim: Some(6),
        heads: 2,
        head_dim: 8,
        qkv_bias: false,
        group_norm: None,
    }
    .init(&Device::flex().autodiff())
}

fn run_resnet(
    activations: Activations,
    block: &ResnetBlock2d,
    x: Tensor<4>,
    temb: Tensor<2>,
) -> Tensor<4> {
    activations.run(block, (x, Some(temb)), |block, (x, temb)| {
        block.forward(x, temb)
    })
}

#[test]
fn a_resnet_block_has_the_same_gradients() {
    let block = resnet();
    let (x, temb) = (random([2, 8, 6, 6]), random([2, 12]));
    let run = |activations| {
        let (x, temb) = (leaf(&x), leaf(&temb));
        // Neither end of the graph is the block: a product before it, one after it.
        let output = run_resnet(activations, &block, x.clone() * 0.5, temb.clone().sin());
        let found = output.clone().powi_scalar(3).mean().backward();
        let inputs = [
            values(x.grad(&found).unwrap()),
            values(temb.grad(&found).unwrap()),
        ];
        (values(output), inputs, gradients(&block, &found))
    };
    let kept = run(Activations::Keep);
    assert!(kept.2.iter().all(Option::is_some));
    assert!(kept == run(Activations::Recompute));
}

#[test]
fn a_block_runs_once_on_the_way_forward_and_once_on_the_way_back() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let block = attention();
    let x = random([1, 4, 16]);
    let output =
        Activations::Recompute.run(&block, (x, random([1, 3, 6])), |block, (x, context)| {
            RUNS.fetch_add(1, Ordering::Relaxed);
            block.forward(x, Some(context))
        });
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    output.sum().backward();
    assert_eq!(RUNS.load(Ordering::Relaxed), 2);
}

#[test]
fn a_block_that_gets_only_constants_has_gradients() {
    let block = resnet();
    let (x, temb) = (random([2, 8, 6, 6]), random([2, 12]));
    let run = |activations| {
        let output = run_resnet(activations, &block, x.clone(), temb.clone());
        gradients(&block, &output.powi_scalar(2).sum().backward())
    };
    let kept = run(Activations::Keep);
    assert!(kept.iter().all(Option::is_some));
    assert!(kept == run(Activations::Recompute));
}

#[test]
fn blocks_that_share_inputs_and_parameters_add_their_gradients() {
    let block = attention();
    let (x, context) = (random([2, 5, 16]), random([2, 3, 6]));
    let run = |activations: Activations| {
        let (x, context) = (leaf(&x), leaf(&context));
        let attend = |x: Tensor<3>| {
            activations.run(&block, (x, Some(context.clone())), |block, (x, context)| {
                block.forward(x, context)
            })
        };
        // The parameters are used three times, once outside of any segment.
        let once = attend(x.clone()) + x.clone();
        let twice = attend(once.clone()) + once;
        let outside = block.forward(twice.clone(), Some(context.clone()));
        let found = (twice * outside).sum().backward();
        (
            [
                values(x.grad(&found).unwrap()),
                values(context.grad(&found).unwrap()),
            ]
            .concat(),
            gradients(&block, &found)
                .into_iter()
                .map(Option::unwrap)
                .collect::<Vec<_>>()
                .concat(),
        )
    };
    let (kept, recomputed) = (run(Activations::Keep), run(Activations::Recompute));
    // Three gradients of a parameter may be added in another order.
    for (kept, recomputed) in [(kept.0, recomputed.0), (kept.1, recomputed.1)] {
        let largest = kept.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (a, b) in kept.iter().zip(&recomputed) {
            assert!(
                (a - b).abs() <= 1e-6 * largest,
                "{a} or {b}, of up to {largest}"
            );
        }
    }
}

#[test]
fn frozen_parameters_and_unused_inputs() {
    let block = attention().no_grad();
    let x = leaf(&random([1, 4, 16]));
    let unused = leaf(&random([1, 2, 6]));
    let context = random([1, 3, 6]);
    let output = Activations::Recompute.run(
        &block,
        ((x.clone(), unused.clone() * 2.0), Some(context)),
        |block, ((x, _), context)| block.forward(x, context),
    );
    let found = output.sum().backward();
    assert!(gradients(&block, &found).iter().all(Option::is_none));
    assert!(values(x.grad(&found).unwrap()).iter().any(|&x| x != 0.0));
    assert!(
        values(unused.grad(&found).unwrap())
            .iter()
            .all(|&x| x == 0.0)
    );
}

#[test]
fn inference_is_unaffected() {
    let block = resnet().valid();
    let (x, temb) = (random([1, 8, 6, 6]), random([1, 12]));
    let run = |activations| run_resnet(activations, &block, x.clone(), temb.clone());
    let output = run(Activations::Recompute);
    assert!(!output.is_autodiff());
    assert!(values(output) == values(run(Activations::Keep)));
}

#[test]
fn a_graph_that_is_dropped_without_a_backward_pass_leaves_nothing_behind() {
    let block = resnet();
    let (x, temb) = (random([1, 8, 6, 6]), random([1, 12]));
    let run = || run_resnet(Activations::Recompute, &block, leaf(&x), temb.clone());
    drop(run());
    let found = run().sum().backward();
    assert!(gradients(&block, &found).iter().all(Option::is_some));
}
