use std::collections::BTreeMap;

use burn::{
    Tensor,
    nn::{Linear, LinearConfig},
    optim::GradientsParams,
    tensor::Device,
};

use super::*;
use crate::{
    config::{NonFiniteConfig, RunConfig},
    metrics::read_metrics,
    quickstart::PRESET,
    train::state::{Trained, initialise},
};

/// What goes wrong at a step.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The loss is not finite.
    Loss,
    /// So is a weight afterwards.
    Weight,
    /// The data can't be read.
    Data,
}

/// A linear layer whose outputs grow, as a stage.
struct Toy {
    linear: Trained<Linear>,
    training: TrainingConfig,
    /// By step; each happens `times` times.
    faults: BTreeMap<u64, Fault>,
    times: u32,
    /// The steps made, with their rates.
    made: Vec<(u64, f64)>,
    position: u64,
}

fn linear(training: &TrainingConfig) -> Trained<Linear> {
    let device = Device::flex();
    let linear = initialise(1, 1, &device, || {
        LinearConfig::new(2, 2).init(&device.clone().autodiff())
    });
    Trained::new(linear, training, None)
}

impl Toy {
    fn gradients(&self) -> GradientsParams {
        let linear = self.linear.module();
        let x = Tensor::<2>::ones([1, 2], &Device::flex());
        GradientsParams::from_grads(linear.forward(x).square().sum().backward(), linear)
    }

    fn weights(&self) -> Vec<f32> {
        self.linear
            .module()
            .weight
            .val()
            .into_data()
            .iter()
            .collect()
    }
}

impl Trainee for Toy {
    fn step(&mut self, step: u64, rate: f64, _: &mut Observer) -> Result<Values, Error> {
        assert_eq!(self.position, step, "the data are those of the step");
        self.position += 1;
        let fault = self.faults.get(&step).copied().filter(|_| self.times > 0);
        if let Some(fault) = fault {
            self.times -= 1;
            match fault {
                Fault::Data => return Err(crate::data::DataError::NoSamples.into()),
                Fault::Weight => {
                    let gradients = self.gradients();
                    let _ = self.linear.update(gradients.into(), f64::INFINITY);
                }
                Fault::Loss => {}
            }
            finite("loss", f64::NAN, step)?;
        }
        self.made.push((step, rate));
        let gradients = self.gradients();
        let _ = self.linear.update(gradients.into(), rate);
        Ok(vec![("loss", 1.0)])
    }

    fn save(&self, writer: &mut CheckpointWriter) -> Result<(), Error> {
        self.linear.save("linear", writer)
    }

    fn restore(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), Error> {
        match checkpoint {
            Some(checkpoint) => self.linear.restore("linear", checkpoint, &self.training),
            None => {
                self.linear = linear(&self.training);
                Ok(())
            }
        }
    }

    fn damage(&self) -> Option<String> {
        self.linear.damage("linear")
    }

    fn seek(&mut self, step: u64) -> Result<(), Error> {
        self.position = step;
        Ok(())
    }

    fn validate(&self) -> Result<Validation, Error> {
        Ok(Validation::default())
    }

    fn preview(&self, _: u64) -> Result<RgbImage, Error> {
        Ok(RgbImage::new(1, 1))
    }
}

/// A run of ten steps with checkpoints at 3, 6, 9 and 10.
struct Course {
    dir: tempfile::TempDir,
    config: RunConfig,
    warnings: Vec<String>,
}

impl Course {
    fn new(action: NonFiniteAction) -> Self {
        let mut config = RunConfig::parse(PRESET, "preset", &[]).unwrap();
        let training = &mut config.stage1.training;
        training.steps = 10;
        training.checkpoint_every = 3;
        training.sample_every = 100;
        training.lr = crate::optim::LrSchedule::constant(0.1);
        training.non_finite = NonFiniteConfig {
            action,
            limit: 2,
            rate_factor: 0.5,
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            config,
            warnings: Vec::new(),
        }
    }

    fn run(&mut self, faults: &[(u64, Fault)], times: u32) -> (Toy, Result<Outcome, Error>) {
        let training = &self.config.stage1.training;
        let run = RunDir::at(self.dir.path());
        run.start(Stage::Vae, &self.config).unwrap();
        let checkpoints =
            Checkpoints::open(&run.checkpoints(Stage::Vae), training.retention()).unwrap();
        let mut toy = Toy {
            linear: linear(training),
            training: training.clone(),
            faults: faults.iter().copied().collect(),
            times,
            made: Vec::new(),
            position: 0,
        };
        let warnings = &mut self.warnings;
        let mut observer = |event: Event| {
            if let Event::Warning(text) = event {
                warnings.push(text.to_owned());
            }
            ControlFlow::Continue(())
        };
        let start =
            restore_newest(&checkpoints, &mut toy, true, run.workers(), &mut observer).unwrap();
        toy.seek(start.step).unwrap();
        let course = RunLoop::open(
            Stage::Vae,
            &self.config,
            training,
            &run,
            &checkpoints,
            &start,
        );
        let outcome = course.unwrap().run(&mut toy, &mut observer);
        (toy, outcome)
    }

    fn logged(&self) -> Vec<(u64, bool)> {
        let path = RunDir::at(self.dir.path()).metrics(Stage::Vae);
        (read_metrics(&path).unwrap().into_iter())
            .map(|record| (record.step, record.values.contains_key("passed_over")))
            .collect()
    }
}

fn steps(toy: &Toy) -> Vec<u64> {
    toy.made.iter().map(|(step, _)| *step).collect()
}

#[test]
fn a_bad_batch_is_passed_over_and_nothing_else_changes() {
    let mut course = Course::new(NonFiniteAction::Skip);
    let (toy, outcome) = course.run(&[(4, Fault::Loss)], u32::MAX);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(steps(&toy), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
    let logged: Vec<(u64, bool)> = (1..=10).map(|step| (step, step == 5)).collect();
    assert_eq!(course.logged(), logged);
    assert_eq!(course.warnings.len(), 1, "{:?}", course.warnings);
    assert!(
        course.warnings[0].contains("step 4"),
        "{:?}",
        course.warnings
    );

    // A run that was killed in between passes over the same step.
    let mut again = Course::new(NonFiniteAction::Skip);
    again.config.stage1.training.steps = 3;
    again.run(&[], 0).1.unwrap();
    again.config.stage1.training.steps = 10;
    let (resumed, _) = again.run(&[(4, Fault::Loss)], u32::MAX);
    assert_eq!(steps(&resumed), [3, 5, 6, 7, 8, 9]);
    assert_eq!(resumed.weights(), toy.weights());
}

#[test]
fn damaged_weights_come_back_from_the_last_checkpoint() {
    let mut course = Course::new(NonFiniteAction::Skip);
    let (toy, outcome) = course.run(&[(4, Fault::Weight)], 1);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(steps(&toy), [0, 1, 2, 3, 3, 5, 6, 7, 8, 9]);
    assert!(toy.damage().is_none());
    assert!(
        course.warnings[0].contains("back to step 3"),
        "{:?}",
        course.warnings
    );
    assert!(
        course.warnings[0].contains("`linear.weight`"),
        "{:?}",
        course.warnings
    );
    // As if step 4 had only been passed over.
    let (plain, _) = Course::new(NonFiniteAction::Skip).run(&[(4, Fault::Loss)], u32::MAX);
    assert_eq!(toy.weights(), plain.weights());
}

#[test]
fn before_the_first_checkpoint_it_starts_anew() {
    let mut course = Course::new(NonFiniteAction::Skip);
    let (toy, _) = course.run(&[(1, Fault::Weight)], 1);
    assert_eq!(steps(&toy), [0, 0, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn the_rate_is_lowered_from_the_last_checkpoint_on_and_stays_so_after_a_resume() {
    let mut course = Course::new(NonFiniteAction::LowerRate);
    course.config.stage1.training.steps = 7;
    let (toy, outcome) = course.run(&[(4, Fault::Loss)], 1);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let rates: Vec<f64> = toy.made.iter().map(|(_, rate)| *rate).collect();
    assert_eq!(steps(&toy), [0, 1, 2, 3, 3, 4, 5, 6]);
    assert_eq!(rates, [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]);
    course.config.stage1.training.steps = 10;
    let (toy, _) = course.run(&[], 0);
    assert_eq!(toy.made, [(7, 0.05), (8, 0.05), (9, 0.05)]);
}

#[test]
fn too_many_failures_in_a_row_end_the_run_at_a_good_checkpoint() {
    for action in [NonFiniteAction::Skip, NonFiniteAction::LowerRate] {
        let mut course = Course::new(action);
        let faults: Vec<(u64, Fault)> = (3..10).map(|step| (step, Fault::Loss)).collect();
        let (_, outcome) = course.run(&faults, u32::MAX);
        assert!(matches!(outcome, Err(Error::NotFinite { .. })));
        assert_eq!(course.warnings.len(), 2);
        let (toy, outcome) = course.run(&[], 0);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        assert_eq!(steps(&toy)[0], 3);
    }
    let mut course = Course::new(NonFiniteAction::Stop);
    let (toy, outcome) = course.run(&[(4, Fault::Loss)], 1);
    assert!(matches!(outcome, Err(Error::NotFinite { .. })));
    assert_eq!(steps(&toy), [0, 1, 2, 3]);
}

#[test]
fn what_was_reached_is_kept_when_the_data_are_gone() {
    let mut course = Course::new(NonFiniteAction::Skip);
    let (_, outcome) = course.run(&[(5, Fault::Data)], 1);
    assert!(matches!(outcome, Err(Error::Data(_))));
    let (toy, _) = course.run(&[], 0);
    assert_eq!(steps(&toy), [5, 6, 7, 8, 9]);
}

#[test]
fn a_checkpoint_with_a_weight_that_is_not_finite_is_set_aside() {
    let mut course = Course::new(NonFiniteAction::Skip);
    course.config.stage1.training.steps = 3;
    course.run(&[], 0).1.unwrap();
    // As an older version might have left it.
    let training = course.config.stage1.training.clone();
    let run = RunDir::at(course.dir.path());
    let checkpoints =
        Checkpoints::open(&run.checkpoints(Stage::Vae), training.retention()).unwrap();
    let mut toy = Toy {
        linear: linear(&training),
        training: training.clone(),
        faults: BTreeMap::new(),
        times: 0,
        made: Vec::new(),
        position: 0,
    };
    let gradients = toy.gradients();
    let _ = toy.linear.update(gradients.into(), f64::INFINITY);
    let newest = checkpoints.latest().unwrap().checkpoint.unwrap();
    let mut state = newest.state().clone();
    state.step = 5;
    let mut writer = checkpoints.writer(state).unwrap();
    toy.save(&mut writer).unwrap();
    writer.finish().unwrap();

    course.config.stage1.training.steps = 6;
    let (toy, outcome) = course.run(&[], 0);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(steps(&toy), [3, 4, 5]);
    assert!(
        course.warnings[0].contains("step-00000005.damaged"),
        "{:?}",
        course.warnings
    );
}
