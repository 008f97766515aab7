use std::path::Path;

use ldm_pipeline::{
    Error,
    data::{
        fashion_mnist,
        twemoji::{self, Captions, Group, Selection},
    },
};

use crate::{
    args::{CaptionStyle, DataCommand, TwemojiArgs},
    output::print,
};

pub(crate) fn run(command: DataCommand) -> Result<(), Error> {
    match command {
        DataCommand::Twemoji(args) => export_twemoji(args),
        DataCommand::FashionMnist { from, out } => export_fashion_mnist(&from, &out),
    }
}

fn export_twemoji(args: TwemojiArgs) -> Result<(), Error> {
    let default = Selection::default();
    let pictures = twemoji::select(&Selection {
        groups: match args.groups {
            _ if args.all => Group::ALL.map(|(group, _)| group).to_vec(),
            groups if groups.is_empty() => default.groups,
            groups => groups,
        },
        skin_tones: args.skin_tones,
        limit: args.count.map(|count| count as usize),
    });
    let captions = match args.captions {
        CaptionStyle::Name => Captions::Name,
        CaptionStyle::Full => Captions::Full,
    };
    twemoji::export(&args.out, &pictures, captions)?;
    print(format_args!(
        "wrote {} pictures and their captions to {}",
        pictures.len(),
        args.out.display()
    ))?;
    print("Twemoji graphics are licensed under CC-BY 4.0: see ATTRIBUTION.md there")?;
    Ok(())
}

fn export_fashion_mnist(from: &Path, out: &Path) -> Result<(), Error> {
    let [train, test] = fashion_mnist::export(from, out)?;
    print(format_args!(
        "wrote {train} pictures to train on and {test} to test on to {}",
        out.display()
    ))?;
    Ok(())
}
