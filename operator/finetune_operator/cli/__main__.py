from finetune_operator.cli.commands import app

app(prog_name="finetune")
