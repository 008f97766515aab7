use ldm_pipeline::{
    Error,
    data::twemoji::{self, Selection},
};

use crate::{args::DataCommand, output::print};

pub(crate) fn run(command: DataCommand) -> Result<(), Error> {
    let DataCommand::Twemoji {
        out,
        count,
        skin_tones,
    } = command;
    let pictures = twemoji::select(&Selection {
        limit: count.map(|count| count as usize),
        skin_tones,
        ..Selection::default()
    });
    twemoji::export(&out, &pictures)?;
    print(format_args!(
        "wrote {} pictures and their captions to {}",
        pictures.len(),
        out.display()
    ))?;
    print("Twemoji graphics are licensed under CC-BY 4.0: see ATTRIBUTION.md there")?;
    Ok(())
}
