/* cli/options.c - the tables of verbs and options: the one home of names, defaults, ranges and help
 * texts. */
#include "cli/options.h"

#include "infer/protocols.h"
#include "infer/sensitivity.h"
#include "model/arch.h"
#include "quant/schemes.h"
#include "train/config.h"

#include <string.h>

/* clang-format off */
const qb_verb qb_verbs[QB_VERB_COUNT] = {
    [QB_VERB_RUN] = {"run", "MODEL...",
        "full precision against quantisation schemes: quality and speed on one screen",
        "The main job. Reads each MODEL (model.bin, GGUF, safetensors, a Hugging Face folder or "
        "llm.c .bin), runs it in full precision and under each scheme on the same windows of text, "
        "and prints what a scheme costs in perplexity and brings in speed. A first argument that "
        "is no command means run. Results go to standard output, progress to standard error.",
        {"qbench --scheme fine,moderate,coarse model.bin",
         "qbench run --scheme all --max-tokens 8192 --json result.json model.gguf"},
        1, 64, qb_cmd_run},
    [QB_VERB_GENERATE] = {"generate", "MODEL",
        "continue a prompt, streamed token by token",
        "Writes the continuation of the prompt to standard output as it is made, and the time to "
        "the first token, tokens a second and peak memory to standard error.",
        {"qbench generate model.bin --prompt \"Once upon a time\"",
         "qbench generate --scheme zeropoint4 --temp 0 --prompt \"The sea\" model.bin"},
        1, 1, qb_cmd_generate},
    [QB_VERB_DATA] = {"data", "TEXT...",
        "texts to token shards, for training",
        "Reads each TEXT (plain, .gz, .xz, JSON lines), encodes its documents on all threads and "
        "writes DIR/NAME.qbs, and DIR/tokenizer.json beside them. The vocabulary is trained on the "
        "texts (--train-bpe) or given (--tokenizer). In plain text a line holding exactly "
        "<|endoftext|> ends a document.",
        {"qbench data train-*.xz --train-bpe 8192 --decontaminate valid.txt -o shards",
         "qbench data valid.txt --tokenizer shards/tokenizer.json --out shards"},
        1, 65536, qb_cmd_data},
    [QB_VERB_CONVERT] = {"convert", "IN OUT",
        "any model format to model.bin, or model.bin to a Hugging Face folder",
        "IN is a Hugging Face folder, .safetensors, GGUF, llm.c .bin or model.bin. OUT is a "
        "model.bin; where it ends in a slash or names a folder, or where IN is a model.bin and OUT "
        "does not end in .bin, it becomes a Hugging Face folder. A GGUF file's blocks (Q4_0 to "
        "Q8_0, Q2_K to Q6_K, IQ4, TQ) are kept in model.bin, or widened by --dtype. With --random "
        "NAME there is no IN: a seeded random model of that shape is written, for timing.",
        {"qbench convert model.gguf model.bin",
         "qbench convert --quantize zeropoint4 model.gguf small.bin"},
        1, 2, qb_cmd_convert},
    [QB_VERB_INSPECT] = {"inspect", "FILE",
        "what a model file or token shard is, tensor by tensor",
        "Prints the architecture, sizes, tokenizer, training record and every tensor with its "
        "dtype and shape; of a token shard its header. Reads the file only.",
        {"qbench inspect model.bin",
         "qbench inspect model.gguf --json -"},
        1, 1, qb_cmd_inspect},
    [QB_VERB_VERIFY] = {"verify", "FILE...",
        "check every checksum and rule of model files and token shards",
        "Exits 0 if every file keeps every rule of its format, 3 at the first that does not. "
        "Changes nothing.",
        {"qbench verify model.bin",
         "qbench verify model.bin model.gguf"},
        1, 1024, qb_cmd_verify},
    [QB_VERB_TOKENIZE] = {"tokenize", "MODEL|tokenizer.json [FILE|-]",
        "text to token ids as one JSON array, and back",
        "Reads FILE, or standard input where it is - or absent. --decode reads a JSON array of ids "
        "and writes the text's bytes.",
        {"echo hello | qbench tokenize model.bin",
         "echo '[1, 2, 3]' | qbench tokenize --decode tokenizer.json -"},
        1, 2, qb_cmd_tokenize},
    [QB_VERB_LOGITS] = {"logits", "--tokens IN --out OUT MODEL",
        "logits and losses of given tokens, as safetensors",
        "IN holds `tokens` (B, T) int32; OUT gets `logits` (B, T, V) and `nll` (B, T-1), both f32. "
        "The whole (B, T) is one batch, so a per-tensor scale spans all of it. 4-bit weights are "
        "multiplied in f32 on the processor, whichever row is the fastest.",
        {"qbench logits --tokens in.safetensors --out out.safetensors model.bin",
         "qbench logits -s coarse --tokens in.safetensors -o out.safetensors model.bin"},
        1, 1, qb_cmd_logits},
    [QB_VERB_ANALYZE] = {"analyze", "MODEL",
        "outlier and attention metrics of a model on a text",
        "Runs MODEL in full precision on the text and measures what makes it hard to quantise: "
        "kurtosis and largest values of the hidden states, massive activations, weight on the first "
        "key, sinks, dormant heads, by layer and over all (docs/analyze.md). Several texts, or one "
        "option each, tell active heads apart by domain. Memory does not grow with the text.",
        {"qbench analyze model.bin --text valid.txt --json analysis.json",
         "qbench analyze model.bin --tokens in.safetensors --json -"},
        1, 1, qb_cmd_analyze},
    [QB_VERB_TRAIN] = {"train", "",
        "train a model, from a preset, a configuration file or flags",
        "Starts a run in the folder --out, or goes on with one (--resume). A preset is read first, "
        "then --config, then the flags: any key of a configuration is one (docs/training.md). "
        "Evaluations go to standard output, progress to standard error, all figures to "
        "metrics.jsonl. Ctrl-C finishes the step and saves. --replay repeats a recorded run (its "
        "start, tokens and bases) and writes the losses and how far the gradients of the first "
        "step are from the record's.",
        {"qbench train --preset gpt2-1m --data shards --out run",
         "qbench train --resume run --steps 4000"},
        0, 0, qb_cmd_train},
    [QB_VERB_PRESETS] = {"presets", "[NAME]",
        "every preset of qbench train, or the configuration of one",
        "Without NAME: a line for each preset. With NAME: its whole configuration as JSON, as "
        "train --config takes it.",
        {"qbench presets",
         "qbench presets bb-1l > mine.json"},
        0, 1, qb_cmd_presets},
    [QB_VERB_COMPARE] = {"compare", "A.json B.json",
        "what changed between two results, and whether it is more than noise",
        "Reads two files of qbench run --json. Records of the same model and scheme are compared: "
        "quality by a paired bootstrap over the windows of the text, speed by resampled medians and "
        "Mann-Whitney. Each figure is SAME, BETTER, WORSE or, where the noise is too large, UNSURE. "
        "Another text, protocol or shape of model is refused (exit 3), naming the field.",
        {"qbench compare before.json after.json",
         "qbench compare --across vanilla.json ours.json --md -"},
        2, 2, qb_cmd_compare},
    [QB_VERB_GATE] = {"gate", "--baseline A.json RESULT.json|MODEL...",
        "limits on what changed since a baseline, with an exit code for CI",
        "Compares RESULT with the baseline and holds it to the limits. Given a MODEL, runs it first "
        "as the baseline was run: same schemes, text, protocol, batch and threads. Exit 1: a limit is broken "
        "(with 95 % confidence over all limits); 5: none is, but the noise leaves one open. Limits "
        "come from --limits, else from qbench-gate.json where it is there, then from the options.",
        {"qbench gate --baseline base.json --max-ppl-delta 0.5% result.json",
         "qbench gate --baseline base.json --max-kl 0.1 --junit gate.xml model.bin"},
        1, 64, qb_cmd_gate},
    [QB_VERB_WATCH] = {"watch", "HISTORY.jsonl [RESULT.json...]",
        "results over time: spark lines, and when a figure changed",
        "Adds the records of each RESULT to the history (a line each; what it holds already is left "
        "out) and prints a line for every figure of every model and scheme, on one text or machine. "
        "A change of level is shown with the record it begins at; in series that never changed, one "
        "in a hundred shows one (ranks, CUSUM, 1,999 shuffles).",
        {"qbench watch history.jsonl result.json",
         "qbench watch history.jsonl --fail-on-change"},
        1, 1024, qb_cmd_watch},
    [QB_VERB_PROFILE] = {"profile", "MODEL",
        "where the time goes: by phase, layer and kernel, against this machine's peaks",
        "Runs MODEL in full precision and under a scheme in turns, prefill and decode, and says what "
        "each phase takes, how far that is from the measured peaks of this machine, and why the "
        "scheme is faster or slower. --sweep finds the batch from which on it wins. Peaks are kept in "
        "$XDG_CACHE_HOME/qbench; --peaks measures them again, and alone without MODEL.",
        {"qbench profile model.bin --scheme fine --trace trace.json",
         "qbench profile model.bin --scheme coarse --sweep batch=1..16,context=128"},
        0, 3, qb_cmd_profile},
    [QB_VERB_REPORT] = {"report", "RESULT.json|RUN...",
        "results, training curves, analyses and profiles as one page of HTML",
        "Reads files of qbench run, analyze and profile --json, and of training runs their folder or "
        "metrics.jsonl, and writes one page that needs no network: summary, penalty against speed, "
        "penalties, latency, memory, time by phase and roofline, outliers by layer, attention maps, "
        "training, machine, commands and hashes. A section is there where its data are.",
        {"qbench report result.json -o report.html",
         "qbench report vanilla.json ours.json runs/vanilla runs/ours -o pair.html"},
        1, 64, qb_cmd_report},
    [QB_VERB_TABLE] = {"table", "N [RESULTS...]",
        "a table of arXiv:2410.17174 beside recorded runs",
        "Prints table 1, 2, 3, 4, 5, 6 or 9 of the paper with our figures under its own, and above it "
        "what differs. RESULTS are files or folders (default: results and share/models) of qbench run "
        "--json, qbench analyze --json and bench/paper_runs.py. What was not run is said to be so.",
        {"qbench table 3",
         "qbench table 2 results --md table2.md"},
        1, 64, qb_cmd_table},
    [QB_VERB_KERNELS] = {"kernels", "",
        "every kernel row, and why it is refused here",
        "Lists the implementations of each operation, best first, the processor's and the GPU's. The "
        "first usable row is taken, of the GPU's the first that takes the shape; the environment "
        "variable QB_DISABLE (avx2, avx512, avx512vnni, cuda, or a row's name) and --kernel take "
        "rows away.",
        {"qbench kernels",
         "QB_DISABLE=avx512 qbench kernels"},
        0, 0, qb_cmd_kernels},
    [QB_VERB_DOCTOR] = {"doctor", "",
        "what this machine can run, why not the rest, and what would help",
        "Looks at the processor, threads, memory, GPUs and their libraries, the kernel rows, MPI, the "
        "tokenizer's patterns, the built-in data and how quiet the machine is. A line each: ok, "
        "limited (works, less well than it could) or no, with what was found; then one "
        "recommendation. Nothing is measured or changed.",
        {"qbench doctor",
         "qbench doctor --json -"},
        0, 0, qb_cmd_doctor},
    [QB_VERB_HELP] = {"help", "[COMMAND]",
        "help for a command, the man page, shell completions",
        "Without COMMAND: all commands. --man prints the manual page in roff, --completion the script "
        "that completes commands, options and their values in a shell.",
        {"qbench help run",
         "qbench help --man | man -l -"},
        0, 1, qb_cmd_help},
    [QB_VERB_VERSION] = {"version", "",
        "version, commit, compiler and processor features",
        "The same as qbench --version.",
        {"qbench version",
         "qbench --version"},
        0, 0, qb_cmd_version},
};
/* clang-format on */

#define ON(verb) (1u << QB_VERB_##verb)
#define ALL (~0u)
#define ENGINE                                                                                     \
    (ON(RUN) | ON(LOGITS) | ON(GENERATE) | ON(PROFILE)) /* verbs that run a model under a scheme   \
                                                         */
#define WINDOWS (ON(RUN) | ON(ANALYZE))                 /* verbs that cut a text into windows */
#define COMPARING (ON(COMPARE) | ON(GATE))

/* Words of an option that are a list of their own; others come from the tables they name. */
#define WORDS(function, ...)                                                                       \
    static const char *function(size_t i)                                                          \
    {                                                                                              \
        static const char *const words[] = {__VA_ARGS__, NULL};                                    \
        return words[i];                                                                           \
    }
WORDS(devices, "auto", "cpu", "cuda", "cuda:")
WORDS(weight_axes, "out", "in", "tensor", "group:")
WORDS(act_axes, "token", "tensor", "channel")
WORDS(act_scales, "dynamic", "static")
WORDS(dtypes, "keep", "f32", "f16", "bf16")

static const char *softmaxes(size_t i)
{
    return i < QB_SOFTMAX_COUNT ? qb_softmax_names[i] : NULL;
}

static const char *sensitivity_parts(size_t i)
{
    return i < QB_SENSITIVITY_COUNT ? qb_sensitivity_words[i] : NULL;
}

static const char *protocols(size_t i)
{
    return qb_protocols[i].name;
}

static const char *schemes(size_t i)
{
    return qb_schemes[i].name;
}

static const char *schemes_or_all(size_t i)
{
    if (i && !qb_schemes[i - 1].name) return NULL;
    return qb_schemes[i].name ? qb_schemes[i].name : "all";
}

/* clang-format off */
const qb_option qb_options[] = {
    /* what to run */
    {"scheme", 's', QB_OPTION_LIST, ON(RUN), "NAME[,NAME...]", "coarse", 0, 0,
        "schemes to compare with full precision", schemes_or_all},
    {"scheme", 's', QB_OPTION_STRING, ON(PROFILE), "NAME", "coarse", 0, 0,
        "scheme to profile beside full precision", schemes},
    {"scheme", 's', QB_OPTION_STRING, ON(ANALYZE), "NAME", "coarse", 0, 0,
        "scheme whose penalty --sensitivity takes apart", schemes},
    {"scheme", 's', QB_OPTION_STRING, ON(LOGITS) | ON(GENERATE), "NAME", NULL, 0, 0,
        "scheme to run (default: the one that the file is stored in, else full)", schemes},
    {"weight-axis", 0, QB_OPTION_STRING, ENGINE | ON(ANALYZE) | ON(CONVERT), "AXIS", NULL, 0, 0,
        "what shares a weight scale instead of the scheme's choice", weight_axes},
    {"act-axis", 0, QB_OPTION_STRING, ENGINE | ON(ANALYZE), "AXIS", NULL, 0, 0,
        "what shares an activation scale instead of the scheme's choice", act_axes},
    {"act-scale", 0, QB_OPTION_STRING, ENGINE | ON(ANALYZE), "WHEN", NULL, 0, 0,
        "activation scales of each call, or from calibration text", act_scales},
    {"quantize-head", 0, QB_OPTION_FLAG, ENGINE | ON(CONVERT), NULL, NULL, 0, 0,
        "quantise the output projection too", NULL},
    {"no-fake", 0, QB_OPTION_FLAG, ON(RUN), NULL, NULL, 0, 0,
        "leave out the fake-quant twin of each integer scheme", NULL},
    {"fake", 0, QB_OPTION_FLAG, ON(LOGITS), NULL, NULL, 0, 0,
        "run the fake-quant twin: quantise, dequantise, float product", NULL},
    {"device", 0, QB_OPTION_STRING, ENGINE | ON(ANALYZE) | ON(GATE), "DEVICE", "auto", 0, 0,
        "where to run: auto is a GPU that can be used, else the processor; cuda:N one of several",
        devices},
    {"kernel", 'k', QB_OPTION_STRING, ENGINE | ON(ANALYZE) | ON(TRAIN) | ON(KERNELS) | ON(GATE),
        "OP/ROW[,...]", NULL, 0, 0,
        "force these kernel rows (see qbench kernels)", NULL},
    {"threads", 't', QB_OPTION_SIZE, ENGINE | ON(ANALYZE) | ON(GATE) | ON(CONVERT) | ON(DATA), "N", NULL, 1, 256,
        "threads (default: the processors that this process may use)", NULL},
    /* on what */
    {"text", 0, QB_OPTION_STRING, ON(RUN) | ON(GATE), "FILE|-", NULL, 0, 0,
        "text to evaluate: plain, .gz, .xz, JSON lines (default: the built-in text)", NULL},
    {"text", 0, QB_OPTION_LIST, ON(ANALYZE), "FILE[,FILE...]", NULL, 0, 0,
        "texts: plain, .gz, .xz, JSON lines (default: the built-in text); - is standard input", NULL},
    {"protocol", 'p', QB_OPTION_STRING, WINDOWS, "NAME", "paper", 0, 0,
        "perplexity protocol", protocols},
    {"context", 'c', QB_OPTION_SIZE, WINDOWS, "T", NULL, 2, 16777216,
        "tokens a window (default: the trained context, at most 1,024)", NULL},
    {"context", 'c', QB_OPTION_SIZE, ON(GENERATE), "T", NULL, 2, 16777216,
        "most tokens of prompt and continuation (default: the trained context)", NULL},
    {"stride", 0, QB_OPTION_SIZE, WINDOWS, "S", NULL, 1, 16777216,
        "step between windows of hf-stride (default: half the context)", NULL},
    {"max-tokens", 'n', QB_OPTION_SIZE, WINDOWS, "N", NULL, 2, 1e12,
        "use the first N tokens of the text (default: all)", NULL},
    {"batch", 'b', QB_OPTION_SIZE, ON(RUN), "B", NULL, 1, 65536,
        "windows a forward call, for quality (default: as many as make 8,192 tokens)", NULL},
    {"batch", 'b', QB_OPTION_SIZE, ON(ANALYZE), "B", NULL, 1, 65536,
        "windows a forward call (default: as many as make 2,048 tokens)", NULL},
    {"no-quality", 0, QB_OPTION_FLAG, ON(RUN), NULL, NULL, 0, 0, "measure speed only", NULL},
    {"speed-batch", 0, QB_OPTION_SIZE, ON(RUN), "B", "1", 1, 4096,
        "sequences at once, for speed", NULL},
    {"speed-context", 0, QB_OPTION_SIZE, ON(RUN), "T", "512", 1, 16777216,
        "tokens of the prefill that is timed", NULL},
    {"no-speed", 0, QB_OPTION_FLAG, ON(RUN), NULL, NULL, 0, 0, "measure quality only", NULL},
    {"energy", 0, QB_OPTION_FLAG, ON(RUN), NULL, NULL, 0, 0,
        "joules a token however many schemes (over a second each; else with up to three)", NULL},
    {"seed", 0, QB_OPTION_SIZE, ON(RUN) | COMPARING | ON(WATCH) | ON(CONVERT) | ON(GENERATE) | ON(PROFILE), "N", "42", 0, 9007199254740992.0,
        "seed of all random numbers", NULL},
    /* results */
    {"json", 0, QB_OPTION_STRING, WINDOWS | ON(PROFILE) | COMPARING | ON(TABLE) | ON(INSPECT) | ON(DATA) | ON(DOCTOR), "FILE|-", NULL, 0, 0,
        "write the result as JSON", NULL},
    {"html", 0, QB_OPTION_STRING, ON(ANALYZE), "FILE|-", NULL, 0, 0,
        "write figures and tables as one page (with --maps)", NULL},
    {"csv", 0, QB_OPTION_STRING, ON(RUN) | ON(REPORT) | ON(TABLE), "FILE|-", NULL, 0, 0,
        "write the results as CSV", NULL},
    {"csv", 0, QB_OPTION_STRING, ON(ANALYZE), "FILE|-", NULL, 0, 0,
        "write every metric of every layer as CSV", NULL},
    {"md", 0, QB_OPTION_STRING, ON(ANALYZE), "FILE|-", NULL, 0, 0,
        "write what the screen shows as Markdown tables", NULL},
    {"md", 0, QB_OPTION_STRING, ON(REPORT), "FILE|-", NULL, 0, 0,
        "write the page's tables, with those behind its figures, as Markdown", NULL},
    {"tables", 0, QB_OPTION_STRING, ON(REPORT), "DIR", NULL, 0, 0,
        "write each of these tables as CSV into this folder", NULL},
    {"md", 0, QB_OPTION_STRING, ON(RUN) | ON(TABLE), "FILE|-", NULL, 0, 0,
        "write the results as a Markdown table", NULL},
    {"md", 0, QB_OPTION_STRING, ON(PROFILE), "FILE|-", NULL, 0, 0,
        "write the profile as Markdown tables", NULL},
    {"junit", 0, QB_OPTION_STRING, ON(RUN), "FILE", NULL, 0, 0,
        "write the results as JUnit XML, one case a scheme", NULL},
    {"md", 0, QB_OPTION_STRING, COMPARING, "FILE|-", NULL, 0, 0,
        "write the comparison as Markdown tables", NULL},
    {"junit", 0, QB_OPTION_STRING, ON(GATE), "FILE", NULL, 0, 0,
        "write the limits as JUnit XML, one case a limit and figure", NULL},
    {"nll", 0, QB_OPTION_STRING, ON(RUN), "DIR", NULL, 0, 0,
        "write each token's loss into this folder, one file a scheme", NULL},
    /* compare, gate */
    {"baseline", 0, QB_OPTION_STRING, ON(GATE), "FILE", NULL, 0, 0,
        "result file of qbench run --json to compare with", NULL},
    {"limits", 0, QB_OPTION_STRING, ON(GATE), "FILE", NULL, 0, 0,
        "JSON file of limits (default: qbench-gate.json where it is there)", NULL},
    {"max-ppl-delta", 0, QB_OPTION_STRING, ON(GATE), "X|P%", NULL, 0, 0,
        "most growth of perplexity, absolute or in % (0.5% where no limit is given at all)", NULL},
    {"max-penalty", 0, QB_OPTION_STRING, ON(GATE), "X", NULL, 0, 0,
        "most perplexity that a scheme may cost over full precision", NULL},
    {"max-kl", 0, QB_OPTION_STRING, ON(GATE), "X", NULL, 0, 0,
        "most KL divergence from full precision, nats a token", NULL},
    {"min-top1", 0, QB_OPTION_STRING, ON(GATE), "P%", NULL, 0, 0,
        "least agreement with full precision on the likeliest token", NULL},
    {"max-slowdown", 0, QB_OPTION_STRING, ON(GATE), "P%", NULL, 0, 0,
        "most loss of prefill and of decode speed", NULL},
    {"max-speedup-loss", 0, QB_OPTION_STRING, ON(GATE), "P%", NULL, 0, 0,
        "most loss of the gain in speed over full precision, which is timed in turns", NULL},
    {"max-memory-growth", 0, QB_OPTION_STRING, ON(GATE), "P%", NULL, 0, 0,
        "most growth of weights, cache and scratch memory", NULL},
    {"strict", 0, QB_OPTION_FLAG, ON(GATE), NULL, NULL, 0, 0,
        "a limit that the noise leaves open counts as broken", NULL},
    {"update-baseline", 0, QB_OPTION_FLAG, ON(GATE), NULL, NULL, 0, 0,
        "write the new result over the baseline, broken limits or not, and exit 0", NULL},
    {"github", 0, QB_OPTION_FLAG, ON(GATE), NULL, NULL, 0, 0,
        "annotations and a job summary for GitHub Actions (default: where GITHUB_ACTIONS is true)",
        NULL},
    {"across", 0, QB_OPTION_FLAG, COMPARING, NULL, NULL, 0, 0,
        "compare the files' models in order, whatever their names and shapes", NULL},
    {"margin-ppl", 0, QB_OPTION_STRING, COMPARING, "P%", "0.1%", 0, 0,
        "changes of perplexity within this margin are SAME", NULL},
    {"margin-speed", 0, QB_OPTION_STRING, COMPARING, "P%", "1%", 0, 0,
        "changes of speed within this margin are SAME", NULL},
    /* profile */
    {"batch", 'b', QB_OPTION_SIZE, ON(PROFILE), "B", "1", 1, 4096, "sequences at once", NULL},
    {"context", 'c', QB_OPTION_SIZE, ON(PROFILE), "T", "512", 1, 16777216,
        "tokens a sequence of the prefill, and before the decoding", NULL},
    {"trace", 0, QB_OPTION_STRING, ON(PROFILE), "FILE|-", NULL, 0, 0,
        "write the last pass of each kind as a trace for Perfetto or chrome://tracing", NULL},
    {"peaks", 0, QB_OPTION_FLAG, ON(PROFILE), NULL, NULL, 0, 0,
        "measure the machine's peaks again and keep the higher ones", NULL},
    {"sweep", 0, QB_OPTION_LIST, ON(PROFILE), "batch=A..B,context=A..B", NULL, 0, 0,
        "speeds over these, each next twice the one before", NULL},
    {"budget", 0, QB_OPTION_DOUBLE, ON(PROFILE), "S", "3", 0, 3600,
        "seconds for each operation; a point of a sweep takes an eighth", NULL},
    {"samples", 0, QB_OPTION_FLAG, ON(PROFILE), NULL, NULL, 0, 0,
        "keep the time of each pass in the JSON", NULL},
    /* report */
    {"out", 'o', QB_OPTION_STRING, ON(REPORT), "FILE|-", NULL, 0, 0, "write the page", NULL},
    {"title", 0, QB_OPTION_STRING, ON(REPORT), "TEXT", "qbench report", 0, 0,
        "the page's heading", NULL},
    /* watch */
    {"fail-on-change", 0, QB_OPTION_FLAG, ON(WATCH), NULL, NULL, 0, 0,
        "exit 1 where the newest change of a figure is for the worse and at most 10 records old",
        NULL},
    /* data */
    {"train-bpe", 0, QB_OPTION_SIZE, ON(DATA), "V", NULL, 257, 1048576,
        "train a byte-level BPE vocabulary of V tokens on the texts", NULL},
    {"tokenizer", 0, QB_OPTION_STRING, ON(DATA), "FILE", NULL, 0, 0,
        "a tokenizer.json, or a model with a tokenizer in it", NULL},
    {"decontaminate", 0, QB_OPTION_LIST, ON(DATA), "FILE[,FILE...]", NULL, 0, 0,
        "drop documents that share 13 words in a row with these texts", NULL},
    {"out", 'o', QB_OPTION_STRING, ON(DATA), "DIR", NULL, 0, 0,
        "folder for the shards and tokenizer.json; made where it is absent", NULL},
    /* convert */
    {"quantize", 'q', QB_OPTION_STRING, ON(CONVERT), "SCHEME", NULL, 0, 0,
        "store the linear layers as this scheme's integer codes", schemes},
    {"random", 0, QB_OPTION_STRING, ON(CONVERT), "NAME", NULL, 0, 0,
        "write a random model: gpt2-60m, gpt2-130m, gpt2-1.4b or llama2-130m", NULL},
    {"dtype", 0, QB_OPTION_STRING, ON(CONVERT), "TYPE", "keep", 0, 0,
        "how float matrices are stored", dtypes},
    {"zlib", 'z', QB_OPTION_SIZE, ON(CONVERT), "LEVEL", "0", 0, 9,
        "compress tensors: 0 = not at all, 1 fast to 9 small", NULL},
    {"tokenizer", 0, QB_OPTION_STRING, ON(CONVERT), "FILE", NULL, 0, 0,
        "put this tokenizer.json into the file", NULL},
    {"name", 0, QB_OPTION_STRING, ON(CONVERT), "TEXT", NULL, 0, 0,
        "the model's name for display (default: that of IN)", NULL},
    {"record", 0, QB_OPTION_STRING, ON(CONVERT), "FILE", NULL, 0, 0,
        "add the keys of this JSON object to the training record", NULL},
    {"softmax", 0, QB_OPTION_STRING, ON(CONVERT), "KIND", NULL, 0, 0,
        "for experiments, change the attention of IN", softmaxes},
    /* inspect */
    {"stats", 0, QB_OPTION_FLAG, ON(INSPECT), NULL, NULL, 0, 0,
        "smallest, largest and largest absolute value of each tensor", NULL},
    /* tokenize */
    {"decode", 'd', QB_OPTION_FLAG, ON(TOKENIZE), NULL, NULL, 0, 0,
        "ids (a JSON array) to text", NULL},
    {"no-special", 0, QB_OPTION_FLAG, ON(TOKENIZE), NULL, NULL, 0, 0,
        "add no first token, and read control tokens in the text as plain text", NULL},
    /* logits */
    {"tokens", 0, QB_OPTION_STRING, ON(LOGITS), "FILE", NULL, 0, 0,
        "safetensors file with `tokens` (B, T) int32", NULL},
    {"tokens", 0, QB_OPTION_LIST, ON(ANALYZE), "FILE[,FILE...]", NULL, 0, 0,
        "safetensors files with `tokens` (B, T) int32 in place of texts", NULL},
    {"out", 'o', QB_OPTION_STRING, ON(LOGITS), "FILE", NULL, 0, 0,
        "safetensors file to write", NULL},
    /* analyze */
    {"bos", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "begin each window with the tokenizer's first token, in place of the text's", NULL},
    {"maps", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "attention and hidden states of the first window, in cells, too", NULL},
    {"rotate-output-basis", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "kurtosis of what each product adds, in the basis that OrthoAdam stepped in", NULL},
    {"checkpoint", 0, QB_OPTION_STRING, ON(ANALYZE), "FILE", NULL, 0, 0,
        "training checkpoint of MODEL (step-N.ckpt): the optimiser's moments of each matrix, too", NULL},
    {"zero-massive", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "perplexity with the massive activations found set to 0", NULL},
    {"mean-massive", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "perplexity with the massive activations found set to their mean", NULL},
    {"zero-first-value", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "perplexity with the value of each window's first token set to 0", NULL},
    {"drop-first-key", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "perplexity where no later token can attend to a window's first", NULL},
    {"remove", 0, QB_OPTION_LIST, ON(ANALYZE), "PART[,PART...]", NULL, 0, 0,
        "perplexity without head:L.H, attn:L or mlp:L, one at a time, counted from 1", NULL},
    {"sensitivity", 0, QB_OPTION_FLAG, ON(ANALYZE), NULL, NULL, 0, 0,
        "quantise one part of the model at a time by --scheme, and all but one", NULL},
    {"by", 0, QB_OPTION_STRING, ON(ANALYZE), "PART", "linear", 0, 0,
        "parts of --sensitivity: each linear layer, those of a block, or of a role in all blocks",
        sensitivity_parts},
    /* generate */
    {"prompt", 0, QB_OPTION_STRING, ON(GENERATE), "TEXT", NULL, 0, 0,
        "text to continue; - reads standard input", NULL},
    {"max-tokens", 'n', QB_OPTION_SIZE, ON(GENERATE), "N", "128", 1, 16777216,
        "stop after N new tokens", NULL},
    {"temp", 0, QB_OPTION_DOUBLE, ON(GENERATE), "T", "0.8", 0, 100,
        "sampling temperature; 0 always takes the likeliest token", NULL},
    {"top-p", 0, QB_OPTION_DOUBLE, ON(GENERATE), "P", "0.95", 0, 1,
        "sample among the likeliest tokens that together have probability P", NULL},
    /* train */
    {"preset", 'p', QB_OPTION_STRING, ON(TRAIN), "NAME", NULL, 0, 0,
        "start from this preset (see qbench presets)", NULL},
    {"config", 0, QB_OPTION_STRING, ON(TRAIN), "FILE", NULL, 0, 0,
        "JSON object of keys and values, on top of the preset", NULL},
    {"out", 'o', QB_OPTION_STRING, ON(TRAIN), "DIR", NULL, 0, 0,
        "folder for the new run; of --replay: the file for its JSON (default: -)", NULL},
    {"resume", 0, QB_OPTION_STRING, ON(TRAIN), "DIR", NULL, 0, 0,
        "go on with the run in this folder from its last checkpoint", NULL},
    {"replay", 0, QB_OPTION_STRING, ON(TRAIN), "FILE", NULL, 0, 0,
        "repeat the recorded run in this file (safetensors) and write the differences", NULL},
    {"serve", 0, QB_OPTION_SIZE, ON(TRAIN), "PORT", NULL, 0, 65535,
        "a live page of the run on 127.0.0.1, read-only; 0 takes any free port", NULL},
#define KEY_WORD QB_OPTION_STRING
#define KEY_TEXT QB_OPTION_STRING
#define KEY_SIZE QB_OPTION_SIZE
#define KEY_REAL QB_OPTION_DOUBLE
#define KEY_SWITCH QB_OPTION_SWITCH
#define KEY_BLOCKS QB_OPTION_STRING
#define X(field, name, kind, use, min, max, default_text, words, value, help)                      \
    {name, 0, KEY_##kind, ON(TRAIN), value, default_text, min, max, help, words},
    QB_TRAIN_KEYS(X)
#undef X
    /* help */
    {"man", 0, QB_OPTION_FLAG, ON(HELP), NULL, NULL, 0, 0, "print the manual page (roff)", NULL},
    {"completion", 0, QB_OPTION_STRING, ON(HELP), "SHELL", NULL, 0, 0,
        "print the completion script of a shell", qb_shell_name},
    /* everywhere */
    {"quiet", 0, QB_OPTION_FLAG, ALL, NULL, NULL, 0, 0, "no progress, no notes", NULL},
    {"help", 'h', QB_OPTION_FLAG, ALL, NULL, NULL, 0, 0, "this text", NULL},
    {"version", 0, QB_OPTION_FLAG, ALL, NULL, NULL, 0, 0, "version, commit, compiler, features", NULL},
};
/* clang-format on */
const size_t qb_n_options = QB_COUNT(qb_options);

const qb_verb *qb_verb_find(const char *name)
{
    for (size_t i = 0; i < QB_VERB_COUNT; i++)
        if (!strcmp(qb_verbs[i].name, name)) return &qb_verbs[i];
    return NULL;
}
