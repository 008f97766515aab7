//! What `ldm sample` offers beyond one image of one prompt: several subjects and seeds, sheets, moving pictures, ways from one image to
//! another, names and colours, and the model that comes with the program.

mod support;

use std::{
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use image::{
    AnimationDecoder, DynamicImage, RgbImage,
    codecs::{gif::GifDecoder, webp::WebPDecoder},
};
use serde_json::{Value, json};
use support::{
    Workspace, copy_folder,
    refusals::{error_text, refused_naming},
    stderr, succeeded,
};

/// A workspace with a fixture's network of random weights as the model directory `m`.
fn with_model(fixture: &str) -> Workspace {
    let workspace = Workspace::empty();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/compvis");
    let model = root.join(fixture).join("model.ckpt");
    workspace.run(&format!("convert {} m", model.display()));
    workspace
}

fn picture(workspace: &Workspace, name: &str) -> RgbImage {
    image::open(workspace.path(name)).unwrap().into_rgb8()
}

/// The request in a PNG.
fn record(workspace: &Workspace, name: &str) -> Value {
    let file = BufReader::new(File::open(workspace.path(name)).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunk = (reader.info().utf8_text.iter())
        .find(|chunk| chunk.keyword == "ldm")
        .expect("a picture carries its request");
    serde_json::from_str(&chunk.get_text().unwrap()).unwrap()
}

/// The pictures of an animation.
fn frames(workspace: &Workspace, name: &str) -> Vec<RgbImage> {
    let file = BufReader::new(File::open(workspace.path(name)).unwrap());
    let frames = if name.ends_with("gif") {
        GifDecoder::new(file).unwrap().into_frames()
    } else {
        WebPDecoder::new(file).unwrap().into_frames()
    };
    frames
        .map(|frame| DynamicImage::ImageRgba8(frame.unwrap().into_buffer()).into_rgb8())
        .collect()
}

/// Kernels may round otherwise for another number of images.
#[track_caller]
fn assert_same(a: &RgbImage, b: &RgbImage, what: &str) {
    assert_eq!(a.dimensions(), b.dimensions(), "{what}");
    let pairs = a.as_raw().iter().zip(b.as_raw());
    let difference = pairs.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(difference <= Some(1), "{what}: {difference:?}");
}

#[test]
fn prompts_and_seeds_are_drawn_together_as_alone() {
    let workspace = with_model("text-kl-f8");
    workspace.write("prompts.txt", "# two of them\nred heart\n\n  blue apple\n");
    // A stochastic sampler has noise at its steps as well.
    let options = "--model m --sampler ddpm --steps 3";
    let stdout = workspace.run(&format!(
        "sample --prompts prompts.txt --seeds 5,9 {options} --batch 3 --out all.png"
    ));
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["all-0.png", "all-1.png", "all-2.png", "all-3.png"]
    );
    let expected = [
        ("red heart", 5),
        ("red heart", 9),
        ("blue apple", 5),
        ("blue apple", 9),
    ];
    for (index, (prompt, seed)) in expected.into_iter().enumerate() {
        let name = format!("all-{index}.png");
        let found = record(&workspace, &name);
        assert_eq!(
            [&found["prompt"], &found["seed"], &found["image"]],
            [&json!(prompt), &json!(seed), &json!(0)]
        );
        let options = format!("sample {options} --seed {seed} --out alone.png");
        let alone = workspace.command(&options).arg(prompt).output().unwrap();
        succeeded(alone);
        let [together, alone] = [&name, "alone.png"].map(|name| picture(&workspace, name));
        assert_same(&together, &alone, &name);
    }
    let all: Vec<RgbImage> = (0..4)
        .map(|index| picture(&workspace, &format!("all-{index}.png")))
        .collect();
    assert!(
        all[0] != all[1] && all[0] != all[2],
        "nothing has an effect"
    );

    // Without a list of seeds each prompt has all images of the one.
    workspace.run(&format!(
        "sample --prompts prompts.txt --seed 5 --count 2 {options} --out counted.png"
    ));
    let found = record(&workspace, "counted-3.png");
    assert_eq!(
        [&found["prompt"], &found["seed"], &found["image"]],
        [&json!("blue apple"), &json!(5), &json!(1)]
    );
    assert_same(
        &picture(&workspace, "counted-2.png"),
        &all[2],
        "counted-2.png",
    );
}

#[test]
fn a_grid_holds_all_images_with_captions() {
    let workspace = with_model("text-kl-f8");
    workspace.run("sample heart --model m --steps 2 --grid 3x2 --out sheet.png");
    assert_eq!(
        workspace
            .files("")
            .keys()
            .filter(|name| name.ends_with("png"))
            .count(),
        1,
        "a sheet is written in place of the images"
    );
    let sheet = picture(&workspace, "sheet.png");
    let found = record(&workspace, "sheet.png");
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.len(), 6);
    assert_eq!(images[4]["prompt"], "heart");
    assert_eq!(images[4]["image"], 4);
    assert_eq!(found["steps"], 2);

    workspace.run("sample heart --model m --steps 2 --count 6 --grid --each --out both.png");
    // As square as can be, which six are at three by two.
    assert_eq!(picture(&workspace, "both.png"), sheet);
    // The second of the first row, enlarged from 64 to 128 pixels: 16 to the edge, 12 between two.
    let second = picture(&workspace, "both-1.png");
    for (x, y) in [(0, 0), (63, 63), (20, 41)] {
        let shown = sheet.get_pixel(16 + 128 + 12 + 2 * x, 16 + 2 * y);
        assert_eq!(shown, second.get_pixel(x, y), "{x}, {y}");
    }
    assert_eq!(record(&workspace, "both-1.png")["image"], 1);

    // A row for each of several prompts.
    workspace.write("prompts.txt", "red heart\nblue apple\n");
    workspace.run(
        "sample --prompts prompts.txt --model m --steps 1 --seeds 1,2,3 --out rows.png --grid",
    );
    assert_eq!(picture(&workspace, "rows.png").width(), sheet.width());

    let bad = "sample --prompts prompts.txt --model m --steps 1 --grid";
    refused_naming(&workspace, &format!("{bad} 3x1"), 1, &["3 x 1", "--count"]);
    let many = format!("{bad} 3x1 --count 2");
    refused_naming(&workspace, &many, 1, &["4 images", "3 x 1"]);
    refused_naming(
        &workspace,
        "sample --grid heart",
        2,
        &["COLSxROWS", "before"],
    );
}

#[test]
fn the_way_of_an_image_is_a_moving_picture() {
    let workspace = with_model("text-kl-f8");
    let options = "sample heart --model m --steps 10 --sampler ddim";
    let stdout = workspace.run(&format!(
        "{options} --animate new/way.webp --animate-every 3 --out end.png"
    ));
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["end.png", "new/way.webp"]
    );
    let way = frames(&workspace, "new/way.webp");
    assert_eq!(way.len(), 4, "after 3, 6 and 9 steps, and the end");
    let end = picture(&workspace, "end.png");
    assert_eq!(way[3], end);
    assert!(way[0] != way[1] && way[1] != way[2]);
    // Watching changes nothing.
    workspace.run(&format!("{options} --out unwatched.png"));
    assert_eq!(picture(&workspace, "unwatched.png"), end);

    // Several images go side by side, from several batches.
    workspace.run(&format!(
        "{options} --count 3 --batch 2 --animate way.gif --grid 3x1 --out sheet.png"
    ));
    let way = frames(&workspace, "way.gif");
    assert_eq!(way.len(), 10);
    let sheet = picture(&workspace, "sheet.png");
    assert!(
        way.iter()
            .all(|frame| frame.dimensions() == sheet.dimensions())
    );

    for (arguments, status, expected) in [
        ("--animate way.mp4", 1, &["way.mp4", "sample.gif"][..]),
        ("--animate m", 1, &["--animate"]),
        ("--animate-every 2", 2, &["--animate"]),
        (
            "--animate way.gif --count 100000",
            1,
            &["too many for one picture", "--animate"],
        ),
        (
            "--animate way.gif --steps 1000 --width 512 --height 512 --count 2",
            1,
            &["--animate-every"],
        ),
    ] {
        let arguments = format!("sample heart --model m {arguments} --out no.png");
        refused_naming(&workspace, &arguments, status, expected);
    }
}

#[test]
fn an_interpolation_leads_from_one_image_to_the_other() {
    let workspace = with_model("text-kl-f8");
    let options = "--model m --steps 3 --sampler ddpm";
    let ends = |way: &str, last: usize, first_alone: &str, last_alone: &str| {
        for (index, alone) in [(0, first_alone), (last, last_alone)] {
            workspace.run(&format!("sample {alone} {options} --out alone.png"));
            let what = format!("{way}-{index}.png");
            assert_same(
                &picture(&workspace, &what),
                &picture(&workspace, "alone.png"),
                &what,
            );
        }
        let middle = picture(&workspace, &format!("{way}-{}.png", last / 2));
        for end in [0, last] {
            let end = picture(&workspace, &format!("{way}-{end}.png"));
            assert_ne!(middle, end, "{way}: nothing is between");
        }
    };

    let stdout = workspace.run(&format!(
        "sample heart {options} --seeds 1,2 --interpolate 5 --animate way.gif --out seeds.png"
    ));
    assert_eq!(stdout.lines().count(), 6, "{stdout}");
    ends("seeds", 4, "heart --seed 1", "heart --seed 2");
    assert_eq!(frames(&workspace, "way.gif").len(), 5);
    let found = record(&workspace, "seeds-1.png");
    assert_eq!([&found["seed"], &found["share"]], [&json!(1), &json!(0.25)]);
    assert_eq!(found["to"], json!({"seed": 2, "image": 0}));

    workspace.run(&format!(
        "sample heart --to apple {options} --seed 4 --interpolate 3 --batch 2 --out prompts.png"
    ));
    ends("prompts", 2, "heart --seed 4", "apple --seed 4");
    let found = record(&workspace, "prompts-1.png");
    assert_eq!(
        [&found["prompt"], &found["share"]],
        [&json!("heart"), &json!(0.5)]
    );
    assert_eq!(found["to"], json!({"prompt": "apple"}));

    workspace.write("prompts.txt", "heart\napple\n");
    workspace.run(&format!(
        "sample --prompts prompts.txt --seeds 1,2 {options} --interpolate 3 --out both.png"
    ));
    ends("both", 2, "heart --seed 1", "apple --seed 2");
    workspace.run(&format!(
        "sample heart --to apple {options} --interpolate 4 --out sheet.png --grid 4x1"
    ));
    assert_eq!(record(&workspace, "sheet.png")["images"][3]["share"], 1.0);

    workspace.write("three.txt", "heart\napple\nstar\n");
    for (arguments, status, expected) in [
        ("heart --interpolate 3", 2, "--seeds"),
        (
            "heart --interpolate 1 --seeds 1,2",
            2,
            "'1' for '--interpolate",
        ),
        ("heart --interpolate 3 --seeds 1,2 --count 2", 2, "--count"),
        ("heart --to apple", 2, "--interpolate"),
        ("--to apple --interpolate 3", 2, "PROMPT"),
        ("heart --interpolate 3 --seeds 1,2,3", 1, "no more than two"),
        ("--prompts three.txt --interpolate 3", 1, "no more than two"),
        ("heart --interpolate 3 --seeds 1", 1, "two --seeds"),
    ] {
        let arguments = format!("sample {arguments} --model m --out no.png");
        refused_naming(&workspace, &arguments, status, &[expected]);
    }
}

/// Writes what `ldm.json` of the model has under a key.
fn set_fact(workspace: &Workspace, key: &str, value: Value) {
    let path = workspace.path("m/ldm.json");
    let mut facts: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    facts[key] = value;
    fs::write(path, facts.to_string()).unwrap();
}

#[test]
fn classes_have_numbers_and_names() {
    let workspace = with_model("class-vq-f4");
    let options = "--model m --steps 2";
    refused_naming(
        &workspace,
        &format!("sample {options} --class goldfish"),
        1,
        &["\"goldfish\"", "number"],
    );
    workspace.run(&format!("sample {options} --class 1 --out nameless.png"));
    let found = record(&workspace, "nameless.png");
    assert_eq!(
        [&found["class"], &found["class_name"]],
        [&json!(1), &Value::Null]
    );

    set_fact(
        &workspace,
        "classes",
        json!([
            "tench, Tinca tinca",
            "goldfish",
            "great white shark",
            "crane",
            "crane"
        ]),
    );
    assert!(workspace.run("info m").contains("goldfish"));
    let output = workspace
        .command_of(&[
            "sample",
            "--model",
            "m",
            "--steps",
            "2",
            "--class",
            "Goldfish",
            "--class",
            "2",
            "--class",
            "tinca tinca",
            "--out",
            "named.png",
        ])
        .output()
        .unwrap();
    succeeded(output);
    for (index, class) in [1, 2, 0].into_iter().enumerate() {
        let name = format!("named-{index}.png");
        let found = record(&workspace, &name);
        assert_eq!(found["class"], class);
        workspace.run(&format!(
            "sample {options} --class {class} --out numbered.png"
        ));
        let [named, numbered] = [&name, "numbered.png"].map(|name| picture(&workspace, name));
        assert_same(&named, &numbered, &name);
    }
    assert_eq!(
        record(&workspace, "named-1.png")["class_name"],
        "great white shark"
    );
    assert_ne!(
        picture(&workspace, "named-0.png"),
        picture(&workspace, "named-1.png")
    );

    workspace.run(&format!(
        "sample {options} --class goldfish --class tench --interpolate 3 --out way.png"
    ));
    assert_same(
        &picture(&workspace, "way-2.png"),
        &picture(&workspace, "named-2.png"),
        "the end of the way",
    );
    for (class, expected) in [
        ("goldfsh", "did you mean \"goldfish\""),
        ("zebra", "tench, Tinca tinca, goldfish"),
        ("crane", "[3, 4]"),
        ("11", "0 to 10"),
    ] {
        let arguments = format!("sample {options} --class {class} --out no.png");
        refused_naming(&workspace, &arguments, 1, &[expected]);
    }
    refused_naming(&workspace, "sample --model m --class -1", 2, &["from 0"]);
}

#[test]
fn masks_are_labels_or_colours_of_a_palette() {
    let workspace = with_model("semantic-vq-f4");
    let colors = [[200, 40, 40], [40, 200, 40], [40, 40, 200]];
    let label = |x: u32, y: u32| ((x / 11 + y / 16) % 3) as u8;
    let indices: Vec<u8> = (0..32 * 32).map(|at| label(at % 32, at / 32)).collect();
    let file = File::create(workspace.path("indices.png")).unwrap();
    let mut encoder = png::Encoder::new(file, 32, 32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(colors.as_flattened().to_vec());
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&indices).unwrap();
    writer.finish().unwrap();
    let mut painted = RgbImage::from_fn(32, 32, |x, y| image::Rgb(colors[label(x, y) as usize]));
    painted.save(workspace.path("painted.png")).unwrap();
    painted.put_pixel(7, 3, image::Rgb([199, 40, 41]));
    painted.save(workspace.path("stained.png")).unwrap();
    workspace.write(
        "palette.txt",
        "# red, green, blue\n200 40 40 hair\n40 200 40 skin\n40 40 200 clothes\n",
    );

    let draw = |arguments: &str| {
        workspace.run(&format!(
            "sample --model m --steps 2 {arguments} --out out.png"
        ));
        picture(&workspace, "out.png")
    };
    let expected = draw("--semantic indices.png");
    assert_eq!(
        draw("--semantic painted.png --palette palette.txt"),
        expected
    );
    let found = record(&workspace, "out.png");
    assert_eq!(
        [&found["semantic"], &found["palette"]],
        [&json!("painted.png"), &json!("palette.txt")]
    );
    assert_eq!(
        draw("--semantic painted.png --palette indices.png"),
        expected
    );
    refused_naming(
        &workspace,
        "sample --model m --semantic painted.png",
        1,
        &["painted.png", "--palette"],
    );
    set_fact(&workspace, "palette", json!(colors));
    assert_eq!(draw("--semantic painted.png"), expected);

    workspace.run("sample --model m --steps 2 --semantic indices.png --semantic painted.png --seeds 1,2 --out two.png");
    assert_same(
        &picture(&workspace, "two-1.png"),
        &picture(&workspace, "two-3.png"),
        "one mask in two files",
    );
    workspace.write("short.txt", "200 40 40\n40 200 40\n");
    workspace.write("wrong.txt", "200 40 40\nred\n");
    for (arguments, expected) in [
        (
            "--semantic stained.png",
            &["stained.png", "(7, 3)", "(199, 40, 41)", "label 0"][..],
        ),
        (
            "--semantic painted.png --palette short.txt",
            &["painted.png", "(22, 0)", "(40, 40, 200)"],
        ),
        (
            "--semantic painted.png --palette wrong.txt",
            &["wrong.txt", "line 2"],
        ),
        (
            "--semantic painted.png --palette painted.png",
            &["no palette"],
        ),
        ("--semantic painted.png --palette none.txt", &["none.txt"]),
        (
            "--semantic painted.png --semantic indices.png --seeds 1,2 --interpolate 3",
            &["two prompts or two classes"],
        ),
    ] {
        refused_naming(
            &workspace,
            &format!("sample --model m {arguments}"),
            1,
            expected,
        );
    }
    refused_naming(
        &workspace,
        "sample --model m --palette palette.txt",
        2,
        &["--semantic"],
    );
}

#[test]
fn without_a_model_the_one_that_comes_with_the_program_is_used() {
    let workspace = with_model("text-kl-f8");
    fs::create_dir(workspace.path("models")).unwrap();
    workspace.run("convert m models/twemoji-64 --half");
    let weights = |model: &str| {
        let path = format!("{model}/unet/diffusion_pytorch_model.safetensors");
        fs::read(workspace.path(&path)).unwrap()
    };
    let half = weights("models/twemoji-64");
    let tensors = safetensors::SafeTensors::deserialize(&half).unwrap();
    assert!((tensors.iter()).all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F16));
    assert!(half.len() < weights("m").len() * 6 / 10);

    let drawn = workspace
        .command_of(&["sample", "red heart", "--steps", "2"])
        .output()
        .unwrap();
    let said = stderr(&drawn);
    succeeded(drawn);
    assert!(
        said.contains("twemoji-64") && said.contains("--model"),
        "{said}"
    );
    assert_eq!(record(&workspace, "sample.png")["model"], "twemoji-64");
    let named = workspace
        .command_of(&[
            "sample",
            "red heart",
            "--steps",
            "2",
            "--model",
            "models/twemoji-64",
            "--out",
            "named.png",
        ])
        .output()
        .unwrap();
    assert!(!stderr(&named).contains("twemoji-64"));
    succeeded(named);
    assert_eq!(
        picture(&workspace, "sample.png"),
        picture(&workspace, "named.png")
    );

    // Elsewhere, where a variable says.
    copy_folder(&workspace.path("models"), &workspace.path("other"));
    let elsewhere = |folder: &str| {
        workspace
            .command("sample heart --steps 1 --out elsewhere.png")
            .env("LDM_MODELS", folder)
            .output()
            .unwrap()
    };
    let drawn = elsewhere("other");
    assert!(stderr(&drawn).contains("other/twemoji-64"));
    succeeded(drawn);
    let said = error_text(&elsewhere("nowhere"), 1);
    for expected in ["nowhere/twemoji-64", "--model", "LDM_MODELS"] {
        assert!(said.contains(expected), "{said}");
    }
    refused_naming(&workspace, "sample heart --yaml m.yaml", 2, &["--model"]);
}
