use ldm_pipeline::{
    Error,
    report::{draw_curves, write_report},
};

use crate::{args::ReportArgs, output::print};

pub(crate) fn run(args: &ReportArgs) -> Result<(), Error> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => args.run.join("report.html"),
    };
    write_report(&args.run, &out)?;
    print(out.display())?;
    if let Some(curves) = &args.curves {
        draw_curves(&args.run, curves)?;
        print(curves.display())?;
    }
    Ok(())
}
