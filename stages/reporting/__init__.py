"""The report page and the README's figures: inputs, charts, example answers, template."""
