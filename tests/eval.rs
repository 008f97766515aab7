//! `ldm eval` on tiny pictures and models, with a narrow random network in place of Inception.

mod support;

use std::{fs, path::Path};

use image::RgbImage;
use serde_json::Value;
use support::{
    CONFIG, Workspace,
    refusals::{case, check},
    stderr, write_pictures,
};

/// The pictures, and the network as `inception.safetensors`.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    fs::copy(
        fixture("inception.safetensors"),
        workspace.path("inception.safetensors"),
    )
    .unwrap();
    workspace
}

fn fixture(name: &str) -> std::path::PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/eval");
    Path::new(fixtures).join(name)
}

fn json(workspace: &Workspace, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(workspace.path(name)).unwrap()).unwrap()
}

/// A measure that must be there.
#[track_caller]
fn measure(values: &Value, key: &str) -> f64 {
    match values[key].as_f64() {
        Some(value) => value,
        None => panic!("no {key} in {values}"),
    }
}

#[test]
fn samples_are_measured_against_pictures_and_their_statistics() {
    let workspace = workspace();
    write_pictures(&workspace.path("more"), 14);
    let table = workspace.run(
        "eval samples --real data --fake more --inception inception.safetensors --cache kept --save-stats real.safetensors --json first.json",
    );
    for name in ["narrow FID", "sFID", "KID", "precision", "recall"] {
        assert!(table.contains(name), "{table}");
    }
    let first = json(&workspace, "first.json");
    assert_eq!(
        (&first["real_count"], &first["sample_count"]),
        (&10.into(), &14.into())
    );
    assert_eq!(first["narrow_kid_subset_size"], 10);
    assert!(measure(&first, "narrow_fid") > 0.0);
    // All real pictures are among the samples.
    assert_eq!(measure(&first, "narrow_recall"), 1.0);

    // From the kept features, and from the file of statistics: the same numbers.
    let output = workspace.output(
        "eval samples --real data --fake more --inception inception.safetensors --cache kept --json again.json",
    );
    assert!(
        stderr(&output).contains("features of data are from"),
        "{}",
        stderr(&output)
    );
    workspace.run(
        "eval samples --real real.safetensors --fake more --inception inception.safetensors --json stats.json",
    );
    for name in ["again.json", "stats.json"] {
        let values = json(&workspace, name);
        for key in [
            "narrow_fid",
            "narrow_sfid",
            "narrow_kid",
            "narrow_precision",
            "narrow_inception_score",
        ] {
            assert_eq!(
                measure(&values, key),
                measure(&first, key),
                "{key} of {name}"
            );
        }
    }

    workspace.run("eval samples --real data --fake data --inception inception.safetensors --convention pytorch-fid --no-cache --json same.json");
    let same = json(&workspace, "same.json");
    assert!(measure(&same, "narrow_fid").abs() < 1e-3 * measure(&first, "narrow_fid"));
    assert_eq!(measure(&same, "narrow_precision"), 1.0);
}

#[test]
fn reconstructions_are_measured() {
    let workspace = workspace();
    workspace.run("train vae tiny.toml --data data --out run --steps 2");
    let picture = |number: u32| {
        RgbImage::from_fn(32, 32, |x, y| {
            image::Rgb([(8 * x) as u8, (8 * y) as u8, (90 * number) as u8])
        })
    };
    fs::create_dir(workspace.path("square")).unwrap();
    for number in 0..2 {
        let path = workspace.path(&format!("square/{number}.png"));
        picture(number).save(path).unwrap();
    }
    workspace.run("eval reconstruction --model run --data square --inception inception.safetensors --json of.json");
    let values = json(&workspace, "of.json");
    assert_eq!(values["count"], 2);
    let ssim = measure(&values, "ssim");
    assert!((-1.0..1.0).contains(&ssim), "{ssim}");
    assert!(measure(&values, "narrow_rfid") > 0.0);
    let psnrs = (0..2).map(|number| {
        let line = workspace.run(&format!(
            "reconstruct square/{number}.png --model run --out out"
        ));
        let (_, number) = line.split_once("PSNR ").unwrap();
        number
            .trim_end()
            .trim_end_matches(" dB")
            .parse::<f64>()
            .unwrap()
    });
    let mean = psnrs.sum::<f64>() / 2.0;
    assert!((measure(&values, "psnr") - mean).abs() < 0.006);
}

#[test]
fn samples_are_drawn_of_all_classes_in_turn() {
    let workspace = workspace();
    for class in ["apples", "pears", "plums"] {
        write_pictures(&workspace.path(&format!("classes/{class}")), 4);
        fs::remove_file(workspace.path(&format!("classes/{class}/metadata.jsonl"))).unwrap();
    }
    let (before, after) = CONFIG.split_once("[stage2.text]").unwrap();
    let preview = &after[after.find("[stage2.preview]").unwrap()..];
    let class = "[stage2.class]\nn_classes = 4\nembed_dim = 8\n";
    workspace.write("class.toml", format!("{before}{class}\n{preview}"));
    workspace.run("train all class.toml --data classes --out run --steps 3");
    let options = "--steps 3 --seed 7 --guidance 2";
    workspace.run(&format!(
        "eval samples --real classes --model run --count 5 --batch 3 {options} --inception inception.safetensors --no-cache --save-samples drawn --json of.json"
    ));
    assert_eq!(workspace.files("drawn").len(), 5);
    assert_eq!(json(&workspace, "of.json")["sample_count"], 5);
    // Number 1 is the second picture of its seed, of class 1.
    workspace.run(&format!(
        "sample --model run --class 1 --count 2 {options} --out of.png"
    ));
    let pixels = |name: &str| image::open(workspace.path(name)).unwrap().into_rgb8();
    assert_eq!(pixels("drawn/000001.png"), pixels("of-1.png"));

    // Captions of the training pictures take the classes' place.
    workspace.run("train all tiny.toml --data data --out texts --steps 2");
    workspace.run("eval nearest --train data --model texts --count 4 --steps 2 --json near.json");
    assert_eq!(
        json(&workspace, "near.json")["nearest"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn copies_are_found_and_shown() {
    let workspace = workspace();
    write_pictures(&workspace.path("more"), 16);
    for number in 0..10 {
        fs::remove_file(workspace.path(&format!("more/{number}.png"))).unwrap();
    }
    fs::remove_file(workspace.path("more/metadata.jsonl")).unwrap();
    fs::create_dir(workspace.path("copies")).unwrap();
    for (from, to) in [
        ("data/3.png", "a.png"),
        ("data/5.png", "b.png"),
        ("more/12.png", "c.png"),
    ] {
        fs::copy(
            workspace.path(from),
            workspace.path(&format!("copies/{to}")),
        )
        .unwrap();
    }
    let table = workspace.run(
        "eval nearest --train data --held-out more --fake copies --out sheet.png --json of.json",
    );
    assert!(table.contains("copies"), "{table}");
    let values = json(&workspace, "of.json");
    assert_eq!(values["copies"], 2);
    let nearest: Vec<&str> = (values["nearest"].as_array().unwrap().iter())
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(
        nearest[0].ends_with("3.png") && nearest[1].ends_with("5.png"),
        "{nearest:?}"
    );
    assert_eq!(measure(&values, "least"), 0.0);
    assert!(image::open(workspace.path("sheet.png")).unwrap().width() > 300);

    let alone = workspace.run("eval nearest --train data --fake copies");
    assert!(!alone.contains("ratio"), "{alone}");
}

#[test]
fn what_cant_be_measured_is_refused() {
    let workspace = workspace();
    let one = workspace.path("one");
    fs::create_dir(&one).unwrap();
    fs::copy(workspace.path("data/0.png"), one.join("0.png")).unwrap();
    fs::create_dir(workspace.path("mixed")).unwrap();
    RgbImage::new(20, 20)
        .save(workspace.path("mixed/a.png"))
        .unwrap();
    RgbImage::new(20, 24)
        .save(workspace.path("mixed/b.png"))
        .unwrap();
    fs::copy(fixture("compressed.npz"), workspace.path("other.npz")).unwrap();
    let network = fs::read(workspace.path("inception.safetensors")).unwrap();
    workspace.write("cut.safetensors", &network[..network.len() / 2]);
    fs::copy(
        fixture("arrays.safetensors"),
        workspace.path("arrays.safetensors"),
    )
    .unwrap();
    let cases = [
        case(
            "eval samples --real data --fake data",
            "no network",
            "--inception",
        ),
        case(
            "eval samples --real data --fake one --no-cache --inception inception.safetensors",
            "one has one picture, too few for a covariance",
            "add pictures",
        ),
        case(
            "eval samples --real data --fake mixed --no-cache --inception inception.safetensors",
            "b.png has 20 x 24 pixels",
            "--resolution",
        ),
        case(
            "eval samples --real other.npz --fake data --inception inception.safetensors",
            "other.npz are of 24 features",
            "anew",
        ),
        case(
            "eval samples --real arrays.safetensors --fake data --inception inception.safetensors",
            "there is no `mu`",
            "pytorch-fid",
        ),
        case(
            "eval samples --real missing --fake data --no-cache --inception inception.safetensors",
            "missing",
            "",
        ),
        case(
            "eval samples --real data --fake data --inception missing.safetensors",
            "missing.safetensors",
            "check the path",
        ),
        case(
            "eval samples --real data --fake data --inception cut.safetensors",
            "cut.safetensors",
            "again",
        ),
        case(
            "eval samples --real data --fake data --inception arrays.safetensors",
            "does not fit",
            "pt_inception-2015-12-05-6726825d.pth",
        ),
        case(
            "eval samples --real data --fake data --vgg arrays.safetensors",
            "does not fit",
            "features.0.weight",
        ),
        case(
            "eval nearest --train data --fake mixed",
            "b.png has 20 x 24 pixels",
            "--resolution",
        ),
        case("eval nearest --train mixed/a.png --fake data", "a.png", ""),
        case("eval reconstruction --model data --data data", "data", ""),
    ];
    check(&workspace, &cases);
    for (arguments, culprit) in [
        ("eval samples --real data", "--fake"),
        ("eval samples --real data --fake data --model m", "--model"),
        ("eval samples --real data --fake data --seed 3", "--seed"),
        (
            "eval reconstruction --model m --data d --lpips-heads h",
            "--vgg",
        ),
    ] {
        support::refusals::refused(&workspace, arguments, 2, culprit);
    }
}
