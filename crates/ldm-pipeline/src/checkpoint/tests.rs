use burn::Tensor;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::optim::GradientsParams;
use burn::tensor::Device;
use burn_store::ModuleSnapshot;

use super::*;
use crate::ema::Ema;
use crate::optim::{Adam, AdamConfig};
use burn::module::Module;

/// As a discriminator: convolutions and running statistics.
#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    norm: BatchNorm,
    out: Conv2d,
}

fn net(width: usize) -> Net {
    let device = Device::flex().autodiff();
    Net {
        conv: Conv2dConfig::new([1, width], [3, 3]).init(&device),
        norm: BatchNormConfig::new(width).init(&device),
        out: Conv2dConfig::new([width, 1], [1, 1]).init(&device),
    }
}

struct Training {
    net: Net,
    adam: Adam,
    ema: Ema<Net>,
}

fn training() -> Training {
    let net = net(3);
    let ema = Ema::new(&net, 0.99);
    Training {
        net,
        adam: AdamConfig::autoencoder().init(),
        ema,
    }
}

impl Training {
    fn step(&mut self, step: u64) {
        let pixels: Vec<f32> = (0..2 * 36)
            .map(|i| ((i as u64 * 37 + step * 11) % 23) as f32 / 23.0)
            .collect();
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::from_floats(pixels.as_slice(), &device).reshape([2, 1, 6, 6]);
        let hidden = self.net.norm.forward(self.net.conv.forward(x));
        let loss = self.net.out.forward(hidden).square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &self.net);
        self.net = self.adam.step(1e-2, self.net.clone(), gradients.into());
        self.ema.update(&self.net);
    }

    fn save(&self, checkpoints: &Checkpoints, step: u64) -> PathBuf {
        let mut writer = checkpoints.writer(state(step)).unwrap();
        writer.module("net", &self.net).unwrap();
        writer.ema("ema", &self.ema).unwrap();
        writer
            .optimizer("optimizer", &self.adam, &self.net)
            .unwrap();
        writer.finish().unwrap()
    }

    fn resume(checkpoint: &Checkpoint) -> Self {
        let net = checkpoint.module("net", net(3)).unwrap();
        let ema = checkpoint.ema("ema", &net, 0.99).unwrap();
        let adam = checkpoint
            .optimizer("optimizer", AdamConfig::autoencoder(), &net)
            .unwrap();
        Self { net, adam, ema }
    }
}

fn state(step: u64) -> TrainState {
    TrainState {
        step,
        seed: u64::MAX,
        samples_seen: step * 2,
        config_hash: "abc".into(),
        score: None,
        rate_scale: 1.0,
        extra: [("scaling_factor".to_owned(), serde_json::json!(0.1 + 0.2))].into(),
    }
}

/// Every bit of a module, running statistics included.
fn bits<M: Module>(module: &M) -> Vec<(String, Vec<u8>)> {
    let tensors = module.valid().collect(None, None, true);
    tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor.to_bytes().unwrap().to_vec()))
        .collect()
}

#[test]
fn resuming_equals_never_stopping_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(dir.path(), Retention::last(3)).unwrap();
    let mut uninterrupted = training();
    for step in 0..3 {
        uninterrupted.step(step);
    }
    uninterrupted.save(&checkpoints, 3);

    let checkpoint = checkpoints.latest().unwrap().checkpoint.unwrap();
    assert_eq!(checkpoint.state(), &state(3));
    let mut resumed = Training::resume(&checkpoint);
    assert_eq!(bits(&resumed.net), bits(&uninterrupted.net));
    assert_ne!(resumed.net.conv.weight.id, uninterrupted.net.conv.weight.id);
    let names: Vec<_> = bits(&resumed.net)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(names.contains(&"norm.running_mean".to_owned()), "{names:?}");

    for step in 3..6 {
        uninterrupted.step(step);
        resumed.step(step);
        assert_eq!(bits(&resumed.net), bits(&uninterrupted.net), "step {step}");
        assert_eq!(
            bits(resumed.ema.module()),
            bits(uninterrupted.ema.module()),
            "step {step}"
        );
    }
    assert_eq!(resumed.ema.updates(), uninterrupted.ema.updates());

    // Also the files are the same, whatever ids the parameters have.
    let [a, b] = [&uninterrupted, &resumed].map(|training| {
        let dir = tempfile::tempdir().unwrap();
        let path = training.save(
            &Checkpoints::open(dir.path(), Retention::last(1)).unwrap(),
            6,
        );
        ["net", "ema", "optimizer"]
            .map(|name| fs::read(path.join(writer::file_name(name))).unwrap())
    });
    assert_eq!(a, b);
}

#[test]
fn the_last_n_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(dir.path(), Retention::last(2)).unwrap();
    for step in [1, 20, 300, 100_000_000] {
        checkpoints.writer(state(step)).unwrap().finish().unwrap();
    }
    let steps: Vec<u64> = checkpoints
        .by_step()
        .unwrap()
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(steps, [300, 100_000_000]);
    assert!(dir.path().join("step-00000300/state.json").exists());
}

#[test]
fn the_best_and_the_milestones_are_kept_beside_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention {
        last: 1,
        best: true,
        every: Some(40),
    };
    let checkpoints = Checkpoints::open(dir.path(), retention).unwrap();
    let scores = [
        Some(1.0),
        Some(7.0),
        None,
        Some(7.0),
        Some(f64::NAN),
        Some(2.0),
        None,
    ];
    for (score, step) in scores.into_iter().zip((10..).step_by(10)) {
        let state = TrainState {
            score,
            ..state(step)
        };
        checkpoints.writer(state).unwrap().finish().unwrap();
    }
    let steps = |found: Vec<(u64, PathBuf)>| found.into_iter().map(|(step, _)| step).collect();
    let kept: Vec<u64> = steps(checkpoints.by_step().unwrap());
    assert_eq!(kept, [20, 40, 70]);

    // What is set aside is no checkpoint any more.
    let aside = checkpoints
        .set_aside(&dir.path().join("step-00000070"))
        .unwrap();
    assert!(aside.ends_with("step-00000070.damaged") && aside.join("state.json").exists());
    let kept: Vec<u64> = steps(checkpoints.by_step().unwrap());
    assert_eq!(kept, [20, 40]);
    assert_eq!(checkpoints.latest_step().unwrap(), 40);
}

#[test]
fn a_damaged_newest_is_reported_and_the_one_before_used() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("net.safetensors", |dir| {
            let path = dir.join("net.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("net.safetensors", |dir| {
            let path = dir.join("net.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("optimizer.safetensors", |dir| {
            fs::remove_file(dir.join("optimizer.safetensors")).unwrap()
        }),
        ("state.json", |dir| {
            fs::write(dir.join("state.json"), "{").unwrap()
        }),
        ("state.json", |dir| {
            let path = dir.join("state.json");
            let json = fs::read_to_string(&path).unwrap();
            fs::write(path, json.replace("\"step\": 2", "\"step\": 3")).unwrap();
        }),
    ];
    for (culprit, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(dir.path(), Retention::last(5)).unwrap();
        let training = training();
        training.save(&checkpoints, 1);
        damage(&training.save(&checkpoints, 2));

        let latest = checkpoints.latest().unwrap();
        assert_eq!(latest.checkpoint.unwrap().state().step, 1);
        let [error] = &latest.damaged[..] else {
            panic!("one damaged checkpoint")
        };
        let message = error.to_string();
        assert!(
            message.contains("step-00000002") && message.contains(culprit),
            "{message}"
        );

        // The run comes by that step again, and its checkpoint replaces the damaged one.
        training.save(&checkpoints, 2);
        assert_eq!(
            checkpoints
                .latest()
                .unwrap()
                .checkpoint
                .unwrap()
                .state()
                .step,
            2
        );
    }
}

#[test]
fn an_unfinished_checkpoint_is_never_seen() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(dir.path(), Retention::last(5)).unwrap();
    let training = training();
    training.save(&checkpoints, 1);

    let mut writer = checkpoints.writer(state(2)).unwrap();
    writer.module("net", &training.net).unwrap();
    assert_eq!(
        checkpoints
            .latest()
            .unwrap()
            .checkpoint
            .unwrap()
            .state()
            .step,
        1
    );
    // As SIGKILL would: nothing is dropped, the half-written directory stays.
    std::mem::forget(writer);

    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let reopened = Checkpoints::open(dir.path(), Retention::last(5)).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let latest = reopened.latest().unwrap();
    assert!(latest.damaged.is_empty());
    assert_eq!(latest.checkpoint.unwrap().state().step, 1);
}

#[test]
fn another_architecture_is_refused_with_the_tensor_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(dir.path(), Retention::last(5)).unwrap();
    let mut training = training();
    training.step(0);
    training.save(&checkpoints, 1);
    let checkpoint = checkpoints.latest().unwrap().checkpoint.unwrap();
    let wider = net(4);
    let error = checkpoint
        .module("net", wider.clone())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`conv.weight` has shape [3, 1, 3, 3], expected [4, 1, 3, 3]"),
        "{error}"
    );
    let error = checkpoint
        .optimizer("optimizer", AdamConfig::autoencoder(), &wider)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("conv.bias") || error.contains("conv.weight"),
        "{error}"
    );
    assert!(checkpoint.module("absent", net(3)).is_err() && !checkpoint.contains("absent"));
}

#[test]
fn an_empty_folder_has_no_latest() {
    let dir = tempfile::tempdir().unwrap();
    let latest = Checkpoints::open(&dir.path().join("new/folder"), Retention::last(1))
        .unwrap()
        .latest()
        .unwrap();
    assert!(latest.checkpoint.is_none() && latest.damaged.is_empty());
}
