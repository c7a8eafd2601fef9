"""The wording of questions, and how often each type is asked. All splits share the phrasings."""

NO_SOUND = "this recording has no sound."
NO_PICTURE = "this recording has no picture."
NO_RECORDING = "i have no recording to look at."

PHRASES: dict[str, tuple[str, ...]] = {
    "colour": (
        "what colour is the {shape}?",
        "which colour does the {shape} have?",
        "tell me the colour of the {shape}.",
    ),
    "shape": (
        "what shape is the {colour} thing?",
        "which shape is {colour}?",
        "what is the {colour} thing?",
    ),
    "motion": (
        "how does the {name} move?",
        "where does the {name} go?",
        "which way does the {shape} move?",
        "how does the {colour} thing move?",
    ),
    "count": (
        "how many shapes are there?",
        "how many shapes do you see?",
        "count the shapes.",
    ),
    "first_colour": (
        "what colour is the shape that appears first?",
        "which colour comes first?",
        "what is the colour of the first shape?",
    ),
    "when_shape": (
        "when does the {name} appear?",
        "at what time does the {name} appear?",
        "when do you see the {shape}?",
        "when does the {colour} shape come?",
    ),
    "kind": ("what do you hear?", "what sound is it?", "which sound is there?"),
    "kind_at": ("what do you hear at {time}?", "which sound comes at {time}?", "what sounds at {time}?"),
    "beeps": ("how many beeps are there?", "how many beeps do you hear?", "count the beeps."),
    "word": ("what does the voice say?", "which word is said?", "what word do you hear?"),
    "emotion": (
        "how does the voice sound?",
        "how does the speaker feel?",
        "what is the mood of the voice?",
    ),
    "first_sound": (
        "what is the {first} sound?",
        "which sound comes {first}?",
        "what do you hear {first}?",
    ),
    "when_sound": (
        "when {happens}?",
        "at what time {happens}?",
        "when do you hear {a sound}?",
    ),
    "see_at_sound": (
        "what colour is the shape that appears with {a sound}?",
        "which colour do you see when you hear {a sound}?",
        "what is the colour of the shape you see with {a sound}?",
    ),
    "hear_at_shape": (
        "what do you hear when the {name} appears?",
        "which sound comes with the {name}?",
        "what sounds while the {shape} is there?",
    ),
    "order": (
        "does the {name} appear {before} {the sound}?",
        "does the {shape} come {before} {the sound}?",
        "do you see the {name} {before} {the sound}?",
    ),
    "named": (
        "does the voice name the shape in the picture?",
        "does the voice say the name of a shape that you see?",
        "is the word the name of a shape in the picture?",
    ),
    "image_colour": (
        "what colour is the {shape}?",
        "which colour does the {shape} have?",
        "tell me the colour of the {shape}.",
    ),
    "image_shape": (
        "what shape is the {colour} thing?",
        "which shape is {colour}?",
        "what is the {colour} thing?",
    ),
    "image_count": (
        "how many shapes are there?",
        "how many shapes do you see?",
        "count the shapes.",
    ),
    "two_shape": (
        "which clip shows a {shape}, the first or the second?",
        "which clip shows the {name}, the first or the second?",
        "where is the {shape}, in the first clip or in the second?",
    ),
    "two_sound": (
        "which clip has {a sound}, the first or the second?",
        "in which clip do you hear {a sound}, the first or the second?",
        "where do you hear {a sound}, in the first clip or in the second?",
    ),
    "caption_video": ("describe what you see.", "what do you see?", "describe the picture."),
    "caption_audio": ("describe what you hear.", "describe the sound.", "list what you hear."),
    "caption_both": (
        "describe what you see and hear.",
        "what happens in the clip?",
        "describe the clip.",
    ),
}

# How much more often a type is asked than others that the same episode allows. Each comes to three questions
# in a hundred or more; captions to little more, for their many words take most of the loss.
WEIGHTS = {
    "colour": 1.1,
    "shape": 1.6,
    "motion": 2.0,
    "count": 1.1,
    "first_colour": 9.0,
    "when_shape": 2.5,
    "kind": 1.7,
    "beeps": 10.0,
    "word": 6.0,
    "emotion": 3.3,
    "first_sound": 2.6,
    "when_sound": 2.6,
    "see_at_sound": 4.5,
    "hear_at_shape": 4.4,
    "order": 3.3,
    "named": 28.0,
    "image_colour": 1.0,
    "image_shape": 1.0,
    "image_count": 1.0,
    "two_shape": 1.0,
    "two_sound": 1.0,
    "no_sound": 4.4,
    "no_picture": 5.0,
    "caption_video": 0.27,
    "caption_audio": 0.65,
    "caption_both": 1.7,
    "chat": 1.0,
}
TYPES = tuple(WEIGHTS)
OPEN_TYPES = ("no_sound", "no_picture", "caption_video", "caption_audio", "caption_both", "chat")
# Types that can be asked about the held-out shape or voice itself; the split `comp` asks nothing else.
COMP_TYPES = (
    "colour",
    "shape",
    "motion",
    "first_colour",
    "when_shape",
    "word",
    "emotion",
    "when_sound",
    "see_at_sound",
    "hear_at_shape",
    "order",
    "named",
    "two_shape",
    "caption_video",
    "caption_audio",
    "caption_both",
)

# Small talk: answer -> the remarks that it answers.
TALK = {
    "hello! ask me about a recording.": ("hello.", "hi!", "hello there.", "good morning."),
    "you are welcome.": ("thank you.", "thanks!", "thank you very much."),
    "goodbye.": ("goodbye.", "bye!", "see you later."),
    "i answer questions about what you see and hear in a recording.": (
        "what can you do?",
        "what are you good at?",
        "how can you help me?",
    ),
    "i am mllm, a small model that sees and hears.": ("who are you?", "what are you?", "what is your name?"),
    "i am fine. ask me about a recording.": ("how are you?", "how do you do?", "are you well?"),
}
