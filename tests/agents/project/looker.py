"""A model without anything that a checkpoint could not hold."""

from crewai import BaseLLM


class Looker(BaseLLM):
    """Looks an order up and says what it saw; which order is in its own name."""

    def call(self, messages, tools=None, *args, **kwargs):
        order = self.model[-1]
        if any(message["role"] == "tool" for message in messages):
            return f"saw {order}"
        function = {"name": "lookup", "arguments": f'{{"order": "{order}"}}'}
        return [{"id": f"l{order}", "type": "function", "function": function}]

    def supports_function_calling(self) -> bool:
        return True

    def supports_stop_words(self) -> bool:
        return True
